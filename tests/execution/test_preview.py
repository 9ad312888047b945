"""What can be known before work is said by the plan, and at once by the command: one sentence, and nothing is
written."""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

from portability.core.errors import UserError
from portability.core.specs import MethodSpec
from portability.execution import preview
from portability.execution import scheduler as progress
from portability.execution.worker import Setup
from portability.hosts import spread
from portability.hosts.devices import Place
from portability.hosts.host import label_ids, label_tokens, load_tokenizer
from portability.hosts.sources import HostSource, describe
from portability.methods import attach
from portability.planning.plan import plan
from portability.run import command, compose
from portability.store import Store
from portability.tracking.runs import TrackingSpec
from support import tiny
from support.answers import tasks
from support.studies import command as words_of
from support.studies import small
from support.tokenizers import gpt2_like

QUICK = ("grid.seeds=[0]", "grid.budgets=[2]", "engine=inprocess", "tracking.wandb=disabled",
         "grid.study_data=[nano_films]")


@pytest.fixture
def said(data_folders, make_host, tmp_path):
    """What plan and run say of a small study between two hosts; both are refused alike and write nothing."""
    def said(one, two, *more, study=small):
        found = []
        for mode in ("plan", "run"):
            got = study(data_folders, make_host, f"host.nano-raw-base.path={one.source}",
                        f"host.nano-tuned-base.path={two.source}", f"results={tmp_path}/results", *QUICK,
                        f"mode={mode}", *more)
            with pytest.raises(UserError) as error:
                command(got)
            found.append(str(error.value))
            assert not (tmp_path / "results").exists()
        assert found[0] == found[1] and "\n" not in found[0] and "Error:" not in found[0]
        return found[0]

    return said


def with_method(folder, library, config, settings):
    """`small` with a method of one's own, `mine`."""
    (folder / "method").mkdir()
    value = {"library": library, "config": config, "settings": settings, "learning_rate": 1e-3}
    (folder / "method" / "mine.yaml").write_text(json.dumps({"mine": value}))

    def composed(data_folders, make_host, *more):
        return compose(["--config-dir", str(folder), f"data.nano_films.path={data_folders['one']}",
                        "method=[mine]",
                        "task.template='{text} answer :'", "task.max_length=48", "similarity=false", *more])

    return composed


@pytest.mark.parametrize(("family", "library", "config", "settings", "says"), [
    ("t5", "adapters", "MTLLoRAConfig", {}, "MTLLoRAConfig cannot be ported: the modules of several tasks"),
    ("qwen2", "adapters", "PrefixTuningConfig", {}, "adapters has no PrefixTuningConfig for qwen2 hosts"),
    ("phi3", "adapters", "LoRAConfig", {}, "adapters has no phi3 hosts; use a method of peft"),
    ("t5", "adapters", "DoRAConfig", {}, "DoRAConfig with use_dora=True cannot be ported"),
    ("gpt2", "adapters", "LoRAConfig", {"use_dora": True}, "LoRAConfig with use_dora=True cannot be ported"),
    ("t5", "adapters", "DiReftConfig", {"dropout": 0.0}, "DiReftConfig cannot be ported: adapters writes"),
    ("t5", "adapters", "LoRAConfig", {"selfattn_lora": False}, "adds no parameter to host"),
    ("t5", "adapters", "LoRAConfig", {"rnak": 3}, "unexpected keyword argument 'rnak'"),
    ("t5", "adapters", "CompacterConfig", {"bottleneck": 10, "phm_dim": 5}, "width 32 must divide by phm_dim "
     "5"),
    ("gpt2", "portability", "LoRA", {"r": 2, "sites": ["ffn_gate"]}, "has no site 'ffn_gate'; it has "
     "attention_out"),
])
def test_a_method_that_cannot_stand_on_a_host_is_named(said, make_host, tmp_path, family, library, config,
                                                       settings, says):
    host = make_host(family)
    sentence = said(host, host, study=with_method(tmp_path, library, config, settings))
    assert says in sentence and "'mine'" in sentence and "'nano-raw-base'" in sentence


@pytest.mark.parametrize(("port", "more"), [
    ("procrustes", ["port.procrustes.calibration=null"]), ("distill", ["port.distill.calibration=null"]),
    ("warm", ["port.warm.options.of=corr"]),
    ("gradmask", ["port.gradmask.options={of: warm, of_options: {of: procrustes}}"]),
])
def test_a_port_without_the_texts_that_it_reads_is_refused_before_work(said, make_host, port, more):
    host = make_host("t5")
    sentence = said(host, host, "method=[lora]", f"grid.ports=[{port}]", "grid.inits=[ported]", *more)
    assert sentence.endswith(f"compares what both hosts make of texts, and none are named: name some "
                             f"(--calibrate FILE; in a study 'port.{port}.calibration={{texts: SET}}', or a "
                             "file)")
    assert "from 'nano-" in sentence and "to 'nano-" in sentence


@pytest.mark.parametrize("more", [
    ["grid.ports=[auto]", "port.auto.calibration=null"], ["grid.ports=[warm]"],
    ["grid.ports=[warm]", "port.warm.options.of=corr", "port.warm.calibration={texts: nano_films}"],
])
def test_a_port_that_has_its_texts_or_needs_none_is_planned(data_folders, make_host, tmp_path, more):
    got = small(data_folders, make_host, f"results={tmp_path}/results", *QUICK, "method=[lora]", "mode=plan",
                "grid.inits=[ported]", *more)
    assert command(got) == 0


def test_what_a_library_itself_refuses_is_named(make_host, data_folders, tmp_path):
    composed = with_method(tmp_path, "adapters", "BnConfig", {
        "mh_adapter": True, "output_adapter": True, "non_linearity": "cosine", "reduction_factor": 2})
    with pytest.raises(UserError, match="method 'mine': adapters refuses BnConfig on host 'nano-raw-base'"):
        command(composed(data_folders, make_host, f"host.nano-raw-base.path={make_host('gpt2').source}",
                         f"host.nano-tuned-base.path={make_host('gpt2').source}", *QUICK, "mode=plan"))


@pytest.mark.parametrize("config", ["LoRAConfig", "PrefixTuningConfig", "CompacterConfig"])
def test_sizes_that_a_methods_file_leaves_out_are_the_librarys(load, config):
    settings = {"PrefixTuningConfig": {"flat": True}, "CompacterConfig": {"bottleneck": 8}}.get(config, {})
    attached = attach(load(), MethodSpec("mine", "adapters", config, settings, 1e-3))
    state = attached.init_parameters(0)
    assert {name: value.shape for name, value in attached.to_parameters(state).items()} == attached.shapes
    size = {"LoRAConfig": ("rank", 8), "PrefixTuningConfig": ("prefix", 30),
            "CompacterConfig": ("phm", 4)}[config]
    assert size in {pair for slot, value in state.tensors.items()
                    for pair in zip(state.axes[slot], value.shape, strict=True)}


@pytest.mark.parametrize(("one", "two", "words", "says"), [
    (("t5", 32, 2, 4), ("t5", 32, 3, 4), ("method=[lora]", "grid.ports=[copy]"), "decoder has 2 layers and "
     "decoder has 3"),
    (("t5", 32, 2, 4), ("t5", 48, 2, 4), ("method=[lora]", "grid.ports=[copy]"), r"(8, 32) to "
     r"'nano-tuned-base' (8, 48)"),
    (("llama", 32, 2, 4), ("llama", 32, 2, 2), ("method=[prefix]", "grid.ports=[copy]"),
     "self_prefix.prefix_key"),
    (("bert", 32, 2, 4), ("bert", 48, 2, 4), ("method=[lora]", "grid.ports=[copy]", "grid.inits=[scratch]"),
     "head of width"),
    (("t5", 32, 2, 4), ("t5", 32, 3, 4), ("method=[lora]", "grid.ports=[pad_skip]"), "layer map 'skip' only "
     "drops layers"),
    (("t5", 32, 2, 4), ("gpt2", 32, 2, 4), ("method=[lora]",), "partial carry"),
    (("t5", 32, 1, 4), ("t5", 32, 2, 4), ("method=[lora]", "grid.inits=[shuffled]"), "has no layers to "
     "exchange"),
    (("t5", 32, 2, 4), ("t5", 48, 2, 4), ("method=[lora]", "grid.inits=[sampled]",
                                          "init.sampled.options.law=x"), "law of"),
])
def test_a_start_that_no_strategy_can_make_is_named(said, make_host, one, two, words, says):
    sentence = said(make_host(*one), make_host(*two, 1), *words)
    assert says in sentence and "from 'nano-raw-base' to 'nano-tuned-base'" in sentence


def test_a_tokenizer_of_another_host_is_named(said, make_host, tmp_path):
    model = tiny.model("gpt2", 32, 2, 4)
    model.resize_token_embeddings(10)
    model.save_pretrained(tmp_path / "small")
    tiny.tokenizer().save_pretrained(tmp_path / "small")
    sentence = said(make_host("gpt2"), describe(HostSource("small", path=str(tmp_path / "small"))),
                    "method=[lora]")
    assert "host 'nano-tuned-base' gives token" in sentence
    assert "its embedding ends at token 9; take a whole copy" in sentence


def test_a_damaged_tokenizer_is_named(said, make_host, tmp_path):
    folder = shutil.copytree(make_host("gpt2").source, tmp_path / "host")
    (folder / "tokenizer.json").write_text("{")
    sentence = said(describe(HostSource("torn", path=str(folder))), make_host("gpt2"), "method=[lora]")
    assert "the tokenizer of host 'nano-raw-base' cannot be loaded from" in sentence


def test_vocabularies_that_differ_are_named(said, make_host, tmp_path):
    config = tiny.model("gpt2", 32, 2, 4).config
    config.vocab_size += 3
    import transformers
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "more")
    tiny.tokenizer().save_pretrained(tmp_path / "more")
    other = describe(HostSource("more", path=str(tmp_path / "more")))
    sentence = said(make_host("gpt2"), other, "method=[lora_all]", "grid.inits=[ported]")
    assert "the vocabularies differ" in sentence and "'nano-tuned-base'" in sentence


@pytest.mark.parametrize(("family", "words", "says"), [
    ("t5", ("task.label_words=[negative,negative]",), "begin with the same token 3; choose others"),
    ("gpt2", ("task.label_words=[negative,zork]",), "is unknown to the host's tokenizer"),
    ("gpt2", ("task.label_words=[' ',positive]",), "label word ' ' has no token"),
    ("gpt2", ("task.max_length=100",), "task.max_length is 100, but host 'nano-raw-base' has 64 positions"),
    ("gpt2", ("task.max_length=2",), "leaves no room for the text: the question alone takes 2"),
])
def test_texts_and_label_words_that_do_not_fit_a_host_are_named(said, make_host, family, words, says):
    sentence = said(make_host(family), make_host(family, 32, 2, 4, 1), "method=[lora]", *words)
    assert says in sentence and "host 'nano-raw-base'" in sentence and "data set 'nano_films'" in sentence


@pytest.mark.parametrize(("words", "says"), [
    (("+data.quiz.answers.max_length=2",), "too few for a prompt and an answer"),
    (("+data.sums.answers.max_length=99",), "max_length is 99, but host 'nano-raw-[a-z]+' has 64 positions"),
])
def test_prompts_that_do_not_fit_a_host_are_named(sets, make_host, tmp_path, words, says):
    for mode in ("plan", "run"):
        got = tasks(sets, make_host, "gpt2", f"results={tmp_path}/results", f"mode={mode}", *words)
        with pytest.raises(UserError, match=f"data set '(sums|quiz)'.*({says})"):
            command(got)
        assert not (tmp_path / "results").exists()


@pytest.mark.system
def test_the_command_exits_with_2_and_trains_nothing(make_host, data_folders, tmp_path):
    words = [f"data.nano_films.path={data_folders['one']}", "method=[lora]", "grid.ports=[copy]", *QUICK,
             f"host.nano-raw-base.path={make_host('t5').source}",
             f"host.nano-tuned-base.path={make_host('t5', 48).source}"]
    for mode in ("plan", "run"):
        done = words_of(*words, f"mode={mode}", cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert "portability: init 'ported', method 'lora'" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []


# ---- how it is looked at


def test_what_fits_is_looked_at_once_and_without_weights(make_host, data_folders, tmp_path, monkeypatch):
    from portability.execution import rehearse
    from portability.hosts import host as hosts

    def refuse(*_):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(hosts, "load_plain", refuse)
    monkeypatch.setenv("PORTABILITY_CACHE", str(tmp_path / "cache"))
    got = small(data_folders, make_host, f"results={tmp_path}", "mode=plan", "method=[lora,prefix]",
                "grid.seeds=[0,1,2]", "grid.inits=[ported,sampled_norm,scratch,shuffled,compute_matched]")
    seen = []
    original = rehearse.Rehearsal.of
    monkeypatch.setattr(rehearse.Rehearsal, "of", lambda self, *question: (seen.append(question),
                                                                           original(self, *question))[1])
    assert command(got) == 0
    kinds = {(run.host.name, run.method and run.method.name, run.init.name) for run, _ in seen}
    # seeds, updates and budgets make no difference
    assert len(kinds) == len(seen) < len(plan(got.grid).runs) / 2
    assert command(got) == 0 and len(seen) == len(kinds)
    monkeypatch.setattr(preview, "own_code", lambda: "other code")
    assert command(got) == 0 and len(seen) == 2 * len(kinds)


def test_random_numbers_are_left_alone(make_host, data_folders, tmp_path):
    state = torch.random.get_rng_state()
    command(small(data_folders, make_host, f"results={tmp_path}", "mode=plan", "method=compacter",
                  "task.max_length=47"))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_without_torch_the_plan_says_what_was_not_looked_at(make_host, data_folders, tmp_path, monkeypatch,
                                                            caplog, capsys):
    monkeypatch.setattr(preview.importlib.util, "find_spec", lambda name: None)
    assert command(small(data_folders, make_host, f"results={tmp_path}", "mode=plan")) == 0
    assert "torch is not installed" in caplog.text and "distinct" in capsys.readouterr().out


@pytest.mark.system
def test_a_process_that_dies_is_one_sentence(make_host, data_folders, tmp_path):
    got = small(data_folders, make_host, f"results={tmp_path}", "mode=plan")
    run = next(iter(plan(got.grid).runs.values()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preview, "_rehearse", _dies)
        patch.setattr(preview, "sys", SimpleNamespace(modules={}))  # as where torch is not loaded
        with pytest.raises(UserError, match="could not be looked at: the process ended with exit code 7"):
            list(preview._rehearsed([(run, None)], None))


def _dies(*_):
    sys.exit(7)


def test_runs_that_are_done_are_not_looked_at_again(make_host, data_folders, tmp_path, monkeypatch):
    words = (f"results={tmp_path}", "study=done", *QUICK, "method=lora")
    assert command(small(data_folders, make_host, *words)) == 0

    def refuse(questions, setup, place):
        assert not questions
        return iter(())

    monkeypatch.setenv("PORTABILITY_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(preview, "_rehearsed", refuse)
    assert command(small(data_folders, make_host, *words)) == 0
    assert progress.to_do(plan(small(data_folders, make_host, *words).grid), Store(tmp_path / "done"),
                          [])[0] == {}


# ---- hosts spread over devices


def test_a_map_of_devices_that_are_not_there_is_refused_before_anything_is_written(make_host, data_folders,
                                                                                   tmp_path):
    got = small(data_folders, make_host, f"results={tmp_path}/results", *QUICK, "method=lora",
                "engine.device=cpu", "engine.device_map={lm_head: 1}")
    with pytest.raises(UserError, match="puts 'lm_head' of host .* on 1, and here there are cpu"):
        command(got)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(("method", "change", "said"), [
    ("lora", {}, None), ("prefix", {}, "method 'prefix' cannot stand on a host spread over several devices"),
    ("lora", {"lm_heda": 0}, "engine.device_map names 'lm_heda', which host 'nano-"),
])
def test_a_map_and_a_method_that_do_not_go_together_are_seen_before_work(
    make_host, data_folders, tmp_path, monkeypatch, method, change, said
):
    for module in (spread, preview):
        monkeypatch.setattr(module, "count_gpus", lambda: 2)
    monkeypatch.setenv("PORTABILITY_CACHE", str(tmp_path / "empty"))
    parts = {"shared": 0, "encoder": 0, "decoder.embed_tokens": 0, "decoder.block": 1,
             "decoder.final_layer_norm": 1, "decoder.dropout": 1, "lm_head": 0}
    planned = plan(small(data_folders, make_host, *QUICK, f"method={method}", "grid.inits=[scratch]").grid)
    got = small(data_folders, make_host, *QUICK)
    setup = Setup(tmp_path, got.sources, got.overlap, TrackingSpec("disabled", "a", tmp_path))
    place = Place("cuda:0", 1.0, 1, parts | change)
    if said is None:
        assert preview.preview(planned, planned.runs, setup, place).keys() == planned.runs.keys()
    else:
        with pytest.raises(UserError, match=said):
            preview.preview(planned, planned.runs, setup, place)


# ---- label words


@pytest.mark.parametrize(("template", "words", "joined"), [
    ("{text} it is", ("fine", "grim"), (" fine", " grim")),
    ("{text} it is", (" fine", " grim"), (" fine", " grim")),  # as they are written: no second blank
    ("{text} it is\n", ("fine", "grim"), ("fine", "grim")),
    ("{text}", (" fine", " grim"), (" fine", " grim")),
])
def test_label_words_follow_the_question_by_one_blank(template, words, joined):
    tok = gpt2_like()
    asked = template.replace("{text}", "it is")
    count = len(tok(asked)["input_ids"])
    wanted = [tok(asked + word)["input_ids"][count:] for word in joined]
    assert label_tokens(tok, words, False, template) == wanted
    if wanted[0][0] != wanted[1][0]:
        assert label_ids(tok, words, False, template) == tuple(tokens[0] for tokens in wanted)


@pytest.mark.parametrize("name", ["nano-raw-base", "nano-raw-large", "tasks-base", "tasks-large"])
def test_label_words_of_the_shipped_hosts_are_what_they_were(name):
    spec = describe(HostSource(name, path=f"embedded:{name}"))
    tok, seq2seq = load_tokenizer(spec), spec.shape.family == "t5"
    template, words = "question : negative or positive ? {text} answer :", ("negative", "positive")

    def first(word):  # the rule before: "it is WORD" against "it is"
        own = tok(word if seq2seq else f"it is {word}", add_special_tokens=False)["input_ids"]
        return own[0 if seq2seq else len(tok("it is", add_special_tokens=False)["input_ids"])]

    if first(words[0]) == first(words[1]):
        with pytest.raises(UserError):
            label_ids(tok, words, seq2seq, template)
    else:
        assert label_ids(tok, words, seq2seq, template) == (first(words[0]), first(words[1]))


def test_the_plan_shows_an_example_with_its_blanks(make_host, data_folders, tmp_path, capsys):
    words = (f"results={tmp_path}", "mode=plan", "method=lora", "grid.ports=[pad_partial]",
             f"host.nano-raw-base.path={make_host('t5').source}",
             f"host.nano-tuned-base.path={make_host('gpt2').source}")
    first = json.loads((data_folders["one"] / "test.jsonl").read_text().splitlines()[0])["text"]
    shown = "' negative' or ' positive'"
    for labels in ("negative,positive", "' negative',' positive'"):
        assert command(small(data_folders, make_host, *words, f"task.label_words=[{labels}]")) == 0
        lines = capsys.readouterr().out.splitlines()
        (place,) = [at for at, line in enumerate(lines) if line.startswith("example of nano_films on "
                                                                           "nano-tuned-base")]
        assert lines[place].endswith(f": {first + ' answer :'!r} -> {shown}")
        assert lines[place + 1] == "  tokens: ['negative'] or ['positive'] (the first ones are scored)"
        read = [word if word in tiny.WORDS else "<unk>" for word in (*first.split(), "answer", ":")]
        assert lines[place + 2] == f"  read as {len(read)} tokens: {read}"
        # a label alone
        assert any(line.startswith("example of ") and "nano-raw-base" in line for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_the_plan_shows_a_prompt_with_its_answer(sets, make_host, tmp_path, capsys):
    assert command(tasks(sets, make_host, "gpt2", f"results={tmp_path}", "mode=plan")) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, folder in (("sums", "written"), ("quiz", "chosen")):
        row = json.loads((sets / folder / "test.jsonl").read_text().splitlines()[0])
        answer = row["answer"] if name == "sums" else row["choices"][row["answer"]]
        (place,) = [at for at, line in enumerate(lines) if line.startswith(f"example of {name} on "
                                                                           "nano-raw-base")]
        assert lines[place].endswith(f": {row['prompt']!r} -> {' ' + answer!r}")
        assert lines[place + 1] == f"  tokens: {[*answer.split(), '</s>']}"
        read = row["prompt"].split()
        assert lines[place + 2] == f"  read as {len(read)} tokens: {read}"


def test_one_new_kind_of_run_is_one(make_host, data_folders, tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("PORTABILITY_CACHE", str(tmp_path / "cache"))
    with caplog.at_level("INFO"):
        for inits in ("[scratch]", "[scratch,sampled]"):
            command(small(data_folders, make_host, f"results={tmp_path}/results", *QUICK, "mode=plan",
                          "method=[lora]", f"grid.inits={inits}"))
    assert "fit the hosts: 1 new kind of run" in caplog.text
