"""Starts cut out of a larger host, as inits of the grid: shared extractions, unchanged starts, controls, and
refusals."""

import json

import numpy as np
import pytest
import torch

from portability.core.errors import UserError
from portability.core.specs import EXTRACTION, InitSpec, MethodSpec
from portability.data.splits import rows
from portability.execution.execute import WorkerContext, execute
from portability.hosts.host import label_ids, load_host
from portability.inits.kinds import extraction_options
from portability.inits.start import seed_examples
from portability.methods.module import ModuleState, equal
from portability.planning.plan import plan
from portability.run import command
from portability.store import Store
from support.extracted import INITS, LORA, QUICK, hosts, inits
from support.studies import small
from support.studies import study as composed

pytestmark = pytest.mark.system  # takes long


def of_kind(planned, kind):
    return [run for run in planned.runs.values() if run.init.kind == kind]


def test_arms_of_one_extraction_share_it_and_no_teacher_is_trained(data_folders, make_host):
    got = small(data_folders, make_host, *hosts(make_host), *LORA, inits(*INITS),
                "+grid.relations.other=nano_meals")
    planned = plan(got.grid)
    cuts = of_kind(planned, EXTRACTION)
    assert len(cuts) == 2 * 2 + 2, "two seeds of two relations; without examples there is none"
    assert {run.teacher.name for run in cuts} == {"nano-raw-large"}
    assert {run.host.name for run in planned.runs.values()} == {"nano-raw-base"}
    for kind in ("extracted_shuffled", "extracted_noise"):
        assert {run.origin for run in of_kind(planned, kind)} < {run.run_id for run in cuts}
    assert len(of_kind(planned, "pissa")) == len(of_kind(planned, "scratch")) == 2
    places = {run_id: place for place, run_id in enumerate(planned.runs)}
    assert all(places[run.origin] < places[run_id] for run_id, run in planned.runs.items() if run.origin)


def test_a_teacher_stands_in_the_identity_of_its_extractions_and_in_no_other(data_folders, make_host):
    run = of_kind(plan(small(data_folders, make_host, *hosts(make_host), *LORA, inits(*INITS)).grid),
                  "scratch")[0]
    assert run.identity()["teacher"] is None
    cut = of_kind(plan(small(data_folders, make_host, *hosts(make_host), *LORA, inits("extracted")).grid),
                  EXTRACTION)[0]
    assert cut.identity()["teacher"] == cut.teacher.fingerprint != cut.host.fingerprint


@pytest.mark.parametrize("family", ["t5", "llama", "bert"])
def test_every_start_is_the_bare_student_and_training_leaves_it(family, data_folders, make_host, tmp_path):
    got = small(data_folders, make_host, *hosts(make_host, family), *QUICK, inits(*INITS),
                f"results={tmp_path}", "study=cut", "grid.budgets=[3]", "method.lora_all.learning_rate=0.01")
    assert command(got) == 0
    store, planned = Store(tmp_path / "cut"), plan(got.grid)
    (bare,) = of_kind(planned, "bare")
    start, modules = store.predictions(bare.run_id)["margin"][0], {}
    for run_id, run in planned.runs.items():
        if run.host.name == "nano-raw-base" and run.method and (family != "bert" or run.head == "shared"):
            found = store.predictions(run_id)
            np.testing.assert_allclose(found["margin"][0], start, atol=1e-6)
            if run.train.updates:
                assert abs(found["margin"][-1] - start).max() > 1e-4
                modules[run.init.name] = ModuleState.from_file(*store.tensors(run_id, "module"))
    assert set(INITS) <= set(modules)
    first = next(iter(modules["extracted"].tensors))
    assert len({modules[name].tensors[first].numpy().tobytes() for name in INITS}) == len(INITS)
    cuts = of_kind(planned, EXTRACTION)
    for cut in cuts:
        record = store.read(cut.run_id)
        assert record["port_info"]["layers"] and record["cell"]["origin"]["host"] == "nano-raw-large"
        report = json.loads((store.folder(cut.run_id) / "port_report.json").read_text())
        assert set(report["tensors"]) == {slot.key.rpartition(".")[0]
                                          for slot in modules["extracted"].tensors}
    assert str(tmp_path) not in (store.folder(cuts[0].run_id) / "record.json").read_text()


def test_seeds_of_another_task_cut_elsewhere(data_folders, make_host, tmp_path):
    got = small(data_folders, make_host, *hosts(make_host), *QUICK, inits("extracted"), f"results={tmp_path}",
                "study=two", "grid.budgets=[2]", "+grid.relations.other=nano_meals")
    assert command(got) == 0
    one, two = [Store(tmp_path / "two").tensors(run.run_id, "module")[0]
                for run in of_kind(plan(got.grid), EXTRACTION)]
    assert any(not torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("family", ["t5", "llama", "bert"])
def test_seed_examples_are_asked_and_answered_as_in_training(family, data_folders, make_host):
    got = small(data_folders, make_host, *hosts(make_host, family), *LORA, inits("extracted"))
    cut = of_kind(plan(got.grid), EXTRACTION)[0]
    seeds = seed_examples(cut, cut.teacher, got.data)
    assert len(seeds) == 32 and len({tuple(seed.ids) for seed in seeds}) > 20
    teacher, given = load_host(cut.teacher), {}
    for text, label in rows(got.data, "nano_films", "train", 0):
        asked = text if family == "bert" else cut.task.template.replace("{text}", text)
        given[tuple(teacher.tokenizer(asked)["input_ids"])] = label
    for seed in seeds:
        if family == "bert":
            assert seed.label == given[tuple(seed.ids)]
            continue
        words = label_ids(teacher.tokenizer, cut.task.label_words, seq2seq=family == "t5")
        question = seed.ids if family == "t5" else seed.ids[: seed.start]
        answer = seed.target if family == "t5" else seed.ids[seed.start :]
        assert answer == [words[given[tuple(question)]]]


def refused(data_folders, make_host, tmp_path, *more):
    """The sentence with which a study is refused before it begins."""
    got = small(data_folders, make_host, *QUICK, f"results={tmp_path}", "study=bad", "grid.budgets=[2]",
                inits("extracted"), *more)
    with pytest.raises(UserError) as error:
        command(got)
    assert not tmp_path.exists()
    return str(error.value)


def test_what_cannot_be_extracted_is_one_sentence(data_folders, make_host, tmp_path):
    large, small_one = make_host("t5", 48, 3, 6, 2), make_host("t5", 32, 2, 4, 1)
    turned = (f"host.nano-raw-large.path={large.source}", f"host.nano-raw-base.path={small_one.source}",
              "grid.pairs=[[nano-raw-base,nano-raw-large]]")
    assert "has 3 encoder layers" in refused(data_folders, make_host, tmp_path / "a", *turned)
    many = refused(data_folders, make_host, tmp_path / "b", *hosts(make_host),
                   "init.extracted.options.seeds=1000")
    assert "asks for 1000 seed examples" in many and "has 200" in many
    other = make_host("bert", 48, 3, 6, 2)
    mixed = (f"host.nano-raw-large.path={other.source}", *hosts(make_host)[1:], "head=fresh")
    assert "one family" in refused(data_folders, make_host, tmp_path / "c", *mixed)


@pytest.mark.parametrize(("words", "says"), [
    (("method=lora",), "method 'lora' of library adapters cannot do"),
    ((*LORA, "init.extracted.options.seeds=0"), "seeds must be a whole number from 1 on, got 0"),
    ((*LORA, "+init.extracted.options.structure=blck"), "structure"),
    ((*LORA, "+init.extracted.options.layer=first"), "option of init 'extracted'"),
])
def test_a_wrong_configuration_is_refused_before_anything_runs(words, says):
    with pytest.raises(UserError, match=says.replace("(", r"\(")):
        composed(*words, inits("extracted"))


def test_rank_and_sites_are_the_methods():
    method = MethodSpec("l", "portability", "LoRA", {"r": 7, "sites": ["ffn"]}, 1e-3)
    found = extraction_options(method, InitSpec("extracted", "extracted", {"seeds": 4, "layers": "first"}))
    assert (found.rank, found.sites, found.layers, found.structure) == (7, ("ffn",), "first", "block")


@pytest.mark.parametrize("family", ["t5", "llama", "gpt2", "bert"])
def test_taking_the_whole_block_off_begins_beside_the_student_by_what_lies_outside_the_rank(
    family, data_folders, make_host, tmp_path
):
    arms = inits("extracted", "extracted_random", "extracted_shuffled", "scratch")
    got = small(data_folders, make_host, *hosts(make_host, family), *QUICK, arms, f"results={tmp_path}",
                "study=block", "grid.budgets=[2]", "method.lora_all.settings.subtract=block")
    assert command(got) == 0
    store, planned = Store(tmp_path / "block"), plan(got.grid)
    for cut in of_kind(planned, EXTRACTION):
        pairs, blocks = (ModuleState.from_file(*store.tensors(cut.run_id, name)).tensors
                         for name in ("module", "start"))
        assert len(pairs) == 2 * len(blocks) and {slot.role for slot in blocks} == {"D"}
        for slot, block in blocks.items():
            pair_a, pair_b = (pairs[slot._replace(role=role)] for role in ("A", "B"))
            size = pair_b[..., 0].numel(), pair_a[0].numel()
            left, values, right = np.linalg.svd(block.reshape(size).numpy(), full_matrices=False)
            want = (left[:, :4] * values[:4]) @ right[:4]
            got_product = pair_b.flatten(0, -2).numpy() @ pair_a.flatten(1).numpy()
            np.testing.assert_allclose(got_product, want, atol=1e-5)
    (bare,) = of_kind(planned, "bare")
    start = store.predictions(bare.run_id)["margin"][0]
    own = [run for run in planned.runs.values() if run.host.name == "nano-raw-base" and run.train.updates
           and run.method
           and (family != "bert" or run.head == "shared")]
    moved = {run.init.name: float(abs(store.predictions(run.run_id)["margin"][0] - start).max())
             for run in own}
    assert moved["scratch"] < 1e-6 and min(moved["extracted"], moved["extracted_shuffled"]) > 1e-4
    first = {run.init.name: store.tensors(run.run_id, "start")[0] for run in own
             if run.init.name != "scratch"}
    same = {name: torch.equal(first["extracted"][name], tensor)
            for name, tensor in first["extracted_shuffled"].items()}
    assert not all(same.values()), "a layer's block goes with its pairs"


@pytest.mark.parametrize("init", ["extracted_noise", "pissa"])
def test_a_start_without_blocks_cannot_take_one_off(init, data_folders, make_host):
    with pytest.raises(UserError, match=f"init '{init}' has no block to take off"):
        small(data_folders, make_host, *hosts(make_host), *LORA, inits(init),
              "method.lora_all.settings.subtract=block")


def test_an_extraction_asks_its_worker_for_free_threads(data_folders, make_host, tmp_path):
    got = small(data_folders, make_host, *hosts(make_host), *QUICK, inits("extracted"), f"results={tmp_path}",
                "study=one")
    (cut,) = of_kind(plan(got.grid), EXTRACTION)
    modules = []
    for count in (1, 3):
        store, asked = Store(tmp_path / str(count)), []
        context = WorkerContext(store, got.data, free=lambda: asked.append(count) or count)  # noqa: B023
        execute([cut], {cut.run_id: [0]}, context)
        assert asked
        modules.append(ModuleState.from_file(*store.tensors(cut.run_id, "module")))
    assert equal(*modules)
