"""Strategies that fit by another one and then look at the task: "warm", "distill" and "gradmask"."""

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from portability.core.errors import UserError
from portability.core.specs import AnswerSpec, PortSpec, TrainSpec
from portability.data.sampling import BatchSampler
from portability.data.tokenization import encode
from portability.execution.execute import WorkerContext, execute
from portability.hosts.host import load_host
from portability.methods import attach
from portability.methods.files import method_of, parameters_of, read_folder
from portability.methods.module import equal
from portability.planning.plan import plan
from portability.port import main
from portability.porting import trained
from portability.porting.base import PortContext, Purpose
from portability.porting.calibration import calibration
from portability.porting.port import fit_head, port
from portability.porting.strategies import gradmask
from portability.porting.trained import BUCKET_BATCHES, descend, drawn
from portability.store import Store
from portability.tasks.classification import Scorer
from portability.training.trainer import Member, Trainer
from support.peft_methods import method as peft_method
from support.peft_methods import write_plain
from support.studies import small
from support.tiny import METHODS, TASK, noisy, sentences

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
ROWS = [(row["text"], row["label"]) for row in sentences(200, 3)]
TEXTS = calibration("texts", [row["text"] for row in sentences(60, 5)], 400)
TRAINED = ("warm", "distill")
FEW = {"warm": {"updates": 3}, "distill": {"updates": 3}, "gradmask": {"examples": 8}}


@pytest.fixture(scope="module")
def pair(mount):
    """A module on an origin host, and a context for another host of the same family."""
    made, load = {}, functools.cache(lambda source: load_host(specs[source]))
    specs = {}

    def loaded(spec):
        specs[spec.source] = spec
        return load(spec.source)

    def get(method="lora", family="t5", shape=(32, 2, 4), seed=1):
        key = (method, family, shape)
        if key not in made:
            made[key] = mount(method, family, 32, 2, 4), mount(method, family, *shape, seed=9)
        origin, receiving = made[key]
        heads = [Scorer(one.host, TASK).fresh_head(place) for place, one in enumerate(made[key])]
        purpose = Purpose(TASK, (METHODS[method],) * 2, lambda: ROWS, tuple(lambda h=h: h for h in heads))
        return noisy(origin, seed), PortContext(
            origin.host.spec, receiving.host.spec, receiving.init_parameters(2),
            PortSpec("pad", "pad", "stretch"), loaded, lambda: TEXTS, purpose=purpose)

    return get


def by(context, strategy, **options):
    return replace(context, spec=PortSpec("mine", strategy, "stretch", options=options))


class Reading:
    """A host with a module in its weights' place, scored one example at a time by plain transformers."""

    def __init__(self, spec, module=None, method="lora"):
        self.host = load_host(spec)
        if module is not None:
            attached = attach(self.host, METHODS[method])
            values = dict(self.host.model.named_parameters())
            with torch.no_grad():
                for name, value in attached.to_parameters(module).items():
                    values[name].copy_(value)

    def answer(self, text):
        """Logits (2,) of the label words after one text."""
        tokenizer = self.host.tokenizer
        ids = torch.tensor([tokenizer(TASK.template.replace("{text}", text))["input_ids"]])
        more = {"decoder_input_ids": torch.tensor([[0]])} if self.host.family == "t5" else {}
        logits = self.host.model(input_ids=ids, **more).logits[0, -1]
        return logits[tokenizer.convert_tokens_to_ids(list(TASK.label_words))], logits

    def loss(self, rows):
        words = self.host.tokenizer.convert_tokens_to_ids(list(TASK.label_words))
        return torch.stack([F.cross_entropy(self.answer(text)[1], torch.tensor(words[label]))
                            for text, label in rows]).mean()

    def log_odds(self, texts):
        return torch.stack([self.answer(text)[0].log_softmax(-1) for text in texts])


# ---- all of them


@pytest.mark.parametrize("other", ["pad", "procrustes"])
@pytest.mark.parametrize("strategy", FEW)
def test_each_goes_on_from_another_strategy_and_gives_the_same_bits_again(pair, strategy, other):
    module, context = pair(shape=(16, 3, 2))
    start = port(module, by(context, other))
    done, again = (port(module, by(context, strategy, of=other, **FEW[strategy])) for _ in range(2))
    elsewhere = port(module, replace(by(context, strategy, of=other, **FEW[strategy]), seed=1))
    assert equal(done.module, again.module) and done.module.axes == context.fresh.axes
    assert not equal(done.module, start.module)
    if strategy != "distill" or other == "pad":
        assert not equal(done.module, elsewhere.module), "its examples or batches are drawn by the seed"
    report = done.report
    assert report.strategy == strategy and report.name == "mine"
    assert f"{strategy} started from {other}" in report.notes and len(report.notes) == 2
    assert report.updates == FEW[strategy].get("updates", 0) == report.summary()["updates"]
    assert all(torch.equal(done.carried[slot], mask) for slot, mask in start.carried.items())
    assert report.tensors == start.report.tensors


def test_one_can_start_from_another_of_them(pair):
    module, context = pair()
    done = port(module, by(context, "distill", updates=2, of="warm",
                           of_options={"of": "repeat", "updates": 3}))
    assert done.report.updates == 5
    assert [note.split(" in ")[0] for note in done.report.notes] == [
        "warm started from repeat", "3 updates on 24 labelled examples", "distill started from warm",
        f"2 updates on {done.report.calibration_examples - 24} texts answered by the origin"]


def test_a_head_is_the_other_strategys(pair):
    _, context = pair(shape=(48, 2, 4))
    head = {"head.weight": torch.rand(2, 32), "head.bias": torch.rand(2)}
    for of in ("pad", "repeat"):
        found, wanted = fit_head(head, by(context, "warm", of=of)), fit_head(head, by(context, of))
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(("strategy", "options", "says"), [
    ("warm", {"update": 3}, r"unknown option of port 'mine' \(warm\) 'update'; choose one of: .*'updates'"),
    ("warm", {"updates": 0}, "port.mine.options.updates must be a whole number from 1 on, got 0"),
    ("distill", {"batch_size": 2.5}, "options.batch_size must be a whole number from 1 on, got 2.5"),
    ("distill", {"learning_rate": 0}, "options.learning_rate must be a number above 0, got 0"),
    ("warm", {"learning_rate": "much"}, "options.learning_rate must be a number above 0, got 'much'"),
    ("warm", {"learning_rate": 1e30}, "warm' from .* went wrong: the loss or gradient of update .* is"),
    ("gradmask", {"sign": "best"}, "unknown port.mine.options.sign 'best'; choose one of: majority, mean"),
    ("gradmask", {"examples": 201}, "asks for 201 labelled examples, and there are 200; give more, or set a"),
    ("gradmask", {"updates": 3}, "unknown option"),
    ("warm", {"of": "padd"}, "unknown port strategy 'padd'.*did you mean 'pad'"),
    ("warm", {"of_options": 3}, "options.of_options must name options of port strategy 'pad', got 3"),
    ("warm", {"of": "procrustes", "of_options": {"ridge": -1}}, "ridge must be a number above 0"),
    ("warm", {"of": "copy"}, "cannot copy|strategy 'copy' needs equal shapes"),
])
def test_bad_options_are_one_sentence(pair, strategy, options, says):
    module, context = pair(shape=(48, 2, 4))
    with pytest.raises(UserError, match=says) as raised:
        port(module, by(context, strategy, **options))
    assert "\n" not in str(raised.value)


ANSWERS = AnswerSpec("exact_match", None, None, 8, 64)


@pytest.mark.parametrize(("strategy", "given", "says"), [
    ("warm", {"labelled": None}, r"learns from labelled examples, and none are named: name some \(--labels"),
    ("gradmask", {"labelled": None}, "learns from labelled examples, and none are named"),
    ("distill", None, "'distill' from .* to .* looks at a task, and none is given"),
    ("warm", None, "'warm' from .* to .* looks at a task, and none is given"),
    ("distill", {"texts": None}, "compares what both hosts make of texts, and none are named"),
    ("warm", {"task": ANSWERS}, "'warm' .* the answers of this task are scored by exact_match; use another"),
    ("distill", {"task": ANSWERS}, "'distill' .* the answers of this task are scored by exact_match"),
    ("gradmask", {"task": ANSWERS}, "'gradmask' .* the answers of this task are scored by exact_match"),
    ("pad", {}, None),
])
def test_what_is_not_given_is_one_sentence(pair, strategy, given, says):
    module, context = pair()
    purpose = None if given is None else replace(context.purpose, **{k: v for k, v in given.items()
                                                                      if k != "texts"})
    texts = None if given and "texts" in given else context.texts
    context = replace(by(context, strategy), purpose=purpose, texts=texts)
    if says is None:
        with pytest.raises(UserError, match="uses labels, which it does not declare"):
            context.labelled()
        with pytest.raises(UserError, match="uses labels, which it does not declare"):
            context.for_task()
        return
    with pytest.raises(UserError, match=says) as raised:
        port(module, context)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("strategy", FEW)
def test_hosts_with_a_head_answer_by_it_and_need_one(pair, strategy):
    module, context = pair("lora", "bert")
    done = port(module, by(context, strategy, **FEW[strategy]))
    assert not equal(done.module, port(module, by(context, "pad")).module)
    with pytest.raises(UserError, match=r"\(bert\) has no language-model head that label words could be"):
        port(module, replace(by(context, strategy, **FEW[strategy]),
                             purpose=replace(context.purpose, heads=None)))


@pytest.mark.parametrize("strategy", TRAINED)
@pytest.mark.parametrize("method", ["adapter", "prefix", "compacter"])
def test_any_method_can_be_trained_and_the_loaded_host_stays_as_it_was(pair, load, strategy, method):
    module, context = pair(method)
    hosts = {spec.name: load_host(spec) for spec in (context.origin, context.receiving)}
    before = {name: [type(part) for part in host.model.modules()] for name, host in hosts.items()}
    context = replace(by(context, strategy, updates=2), load=lambda spec: hosts[spec.name])
    done = port(module, context)
    assert not equal(done.module, port(module, by(context, "pad")).module)
    assert before == {name: [type(part) for part in host.model.modules()] for name, host in hosts.items()}
    assert not any(p.requires_grad for host in hosts.values() for p in host.model.parameters())


# ---- warm


def test_warm_lowers_the_loss_on_its_examples(pair):
    module, context = pair("lora", "llama")
    done = port(module, by(context, "warm", updates=30, learning_rate=1e-2))
    few = drawn(ROWS, 240, context.seed)[:60]
    losses = [float(Reading(context.receiving, one).loss(few).detach())
              for one in (port(module, by(context, "pad")).module, done.module)]
    assert losses[1] < 0.9 * losses[0], losses


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_warm_makes_the_updates_of_the_projects_trainer(pair, mount, family):
    module, context = pair("lora", family)
    done = port(module, by(context, "warm", updates=6, batch_size=8, learning_rate=2e-3))
    start, target = port(module, by(context, "pad")).module, mount("lora", family, 32, 2, 4, seed=9)
    scorer = Scorer(target.host, TASK)
    few = encode(drawn(ROWS, 48, context.seed), target.host.tokenizer, TASK, True)
    spec = TrainSpec(batch_size=8, warmup=20, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8, clip=1.0,
                     tail=0.0, bucket_batches=BUCKET_BATCHES, head_learning_rate=0.0, updates=6)
    begin = {f"model.{name}": value for name, value in target.to_parameters(start).items()}
    trainer = Trainer(scorer, [Member(begin, context.seed, 2e-3)], spec)
    for step in range(6):
        trainer.update(step, BatchSampler(few, 8, BUCKET_BATCHES, "port"), few)
    wanted = target.to_state({name.removeprefix("model."): value for name, value in trainer.bank.member(
        trainer.bank.theta, 0).items()})
    for slot, tensor in wanted.tensors.items():
        assert torch.allclose(done.module.tensors[slot], tensor, atol=2e-5), slot
    assert max(float((start.tensors[slot] - tensor).abs().max())
               for slot, tensor in wanted.tensors.items()) > 1e-3


# ---- distill


def test_distill_moves_the_receivers_answers_towards_the_origins(pair):
    module, context = pair(shape=(48, 2, 4))
    texts, options = TEXTS.texts[:16], {"updates": 25, "learning_rate": 6e-3}
    with torch.no_grad():
        wanted = Reading(context.origin, module).log_odds(texts)

        def divergence(found):
            answers = Reading(context.receiving, found).log_odds(texts)
            return float((wanted.exp() * (wanted - answers)).sum(1).mean())

        start = port(module, by(context, "pad"))
        done = port(module, by(context, "distill", **options))
        other = port(pair(shape=(48, 2, 4), seed=5)[0], by(context, "distill", **options))
    found = [divergence(one.module) for one in (start, done, other)]
    assert found[1] < 0.5 * found[0] and found[1] < 0.5 * found[2], found
    assert done.report.notes[-1].startswith("25 updates on ") and "nats before" in done.report.notes[-1]
    told = [float(word) for word in done.report.notes[-1].replace(",", "").split() if word[:1].isdigit()][-2:]
    assert told[1] < told[0]


def test_distill_reads_the_texts_until_they_have_their_tokens(pair):
    module, context = pair("lora", "llama")
    done = port(module, by(context, "distill", updates=1))
    lengths = [len(load_host(context.receiving).tokenizer(TASK.template.replace("{text}", text))["input_ids"])
               for text in TEXTS.texts]
    count = done.report.calibration_examples
    assert sum(lengths[:count]) >= TEXTS.tokens > sum(lengths[: count - 1]) and count < len(lengths)


# ---- gradmask


def changes(module):
    """(stack, layer, site) -> the change B A (out, in) of each LoRA pair."""
    found = {}
    for slot in module.tensors:
        if slot.role != "A":
            b = module.tensors[slot._replace(role="B")].double().numpy()
            a = module.tensors[slot._replace(role="A")].double().numpy()
            found[slot[:3]] = b.reshape(-1, len(a)) @ a.reshape(len(a), -1)
    return found


def slopes(context, rows, names, majority=False):
    """The gradients of weights (out, in) by name, with plain transformers, one example after the other."""
    reading = Reading(context.receiving)
    weights = [reading.host.model.get_parameter(name).requires_grad_() for name in names]
    each = [[g.double().numpy() for g in torch.autograd.grad(reading.loss([row]), weights)] for row in rows]
    return {name: sum(np.sign(one[i]) if majority else one[i] for one in each)
            for i, name in enumerate(names)}


LLAMA = {"query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj",
         "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


@pytest.mark.parametrize("sign", ["mean", "majority"])
def test_gradmask_is_the_slow_formula(pair, sign):
    module, context = pair("lora", "llama")
    done = port(module, by(context, "gradmask", examples=12, sign=sign, batch_size=5))
    before, after = changes(port(module, by(context, "pad")).module), changes(done.module)
    names = {place: f"model.layers.{place[1]}.{LLAMA[place[2]]}.weight" for place in before}
    gradients = slopes(context, drawn(ROWS, 12, context.seed), [*names.values()], sign == "majority")
    kept = []
    for place, change in before.items():
        slope = gradients[names[place]]
        agrees = np.sign(change) == -np.sign(slope)
        masked = np.where(agrees & (slope != 0), change, 0)
        left, sizes, right = np.linalg.svd(masked)
        best = (left[:, :4] * sizes[:4]) @ right[:4]
        assert np.allclose(after[place], best, atol=1e-5 * np.abs(best).max()), place
        assert not np.allclose(masked, change, atol=0.1 * np.abs(change).max())
        kept.append([(change**2).sum(), (masked**2).sum(), (best**2).sum(), (agrees & (slope != 0)).mean()])
    whole = np.sum(kept, axis=0)
    assert f"{whole[1] / whole[0]:.1%} of the squared norm" in done.report.notes[-1]
    assert f"hold {whole[2] / whole[1]:.1%}" in done.report.notes[-1]
    assert len(before) == 10 and 0.2 < np.mean([row[3] for row in kept]) < 0.8


def test_gradmask_lowers_the_loss_to_first_order(pair):
    """What stays goes down along the gradient, entry by entry: a small step of it lowers the loss."""
    module, context = pair("lora", "llama")
    few = drawn(ROWS, 16, context.seed)
    less = module.map({slot: tensor * (1e-2 if slot.role != "A" else 1)
                       for slot, tensor in module.tensors.items()})
    with torch.no_grad():
        bare = float(Reading(context.receiving).loss(few))
        found = [port(less, by(context, strategy, **options)).module
                 for strategy, options in (("pad", {}), ("gradmask", {"examples": 16}))]
        losses = [float(Reading(context.receiving, one).loss(few)) for one in found]
    assert losses[1] < bare and losses[1] < losses[0], (bare, losses)


@pytest.mark.parametrize("family", ["t5", "gpt2", "llama"])
def test_with_a_mask_of_all_ones_it_is_the_port_itself(pair, monkeypatch, family):
    module, context = pair("lora", family, (48, 2, 4))
    start = port(module, by(context, "pad"))
    wanted = changes(start.module)

    def agreeing(context, host, places, *more):
        return {slot: -torch.from_numpy(wanted[slot[:3]]) for slot in places}

    monkeypatch.setattr(gradmask, "_slopes", agreeing)
    done = port(module, by(context, "gradmask"))
    for place, change in changes(done.module).items():
        assert np.allclose(change, wanted[place], atol=1e-5 * np.abs(change).max()), place
    assert "stay 100.0%" in done.report.notes[-1] and done.report.notes[-1].endswith("hold 100.0%")
    norms = [sum(float(tensor.double().square().sum()) for slot, tensor in one.module.tensors.items()
                 if slot.role == "A") for one in (start, done)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_gradients_are_those_of_the_sites_own_rows(pair, family):
    """Of GPT-2, whose query, key and value are one transposed weight, and of a T5's two stacks."""
    module, context = pair("lora", family)
    done = port(module, by(context, "gradmask", examples=8))
    reading = Reading(context.receiving)
    if family == "gpt2":
        weight = reading.host.model.transformer.h[1].attn.c_attn.weight
        rows = {"query": slice(0, 32), "key": slice(32, 64), "value": slice(64, 96)}
        places = {("decoder", 1, site): (weight, rows[site]) for site in rows}
    else:
        layer = reading.host.model.encoder.block[1].layer
        places = {("encoder", 1, "value"): (layer[0].SelfAttention.v.weight, slice(None)),
                  ("encoder", 1, "ffn_down"): (layer[1].DenseReluDense.wo.weight, slice(None))}
    before, after = changes(port(module, by(context, "pad")).module), changes(done.module)
    for place, (weight, own) in places.items():
        weight.requires_grad_()
        (slope,) = torch.autograd.grad(reading.loss(drawn(ROWS, 8, context.seed)), weight)
        slope = (slope.T if family == "gpt2" else slope)[own].double().numpy()
        masked = np.where(before[place] * slope < 0, before[place], 0)
        left, sizes, right = np.linalg.svd(masked)
        best = (left[:, :4] * sizes[:4]) @ right[:4]
        assert np.allclose(after[place], best, atol=1e-5 * np.abs(best).max()), place


def of_peft(name, load, family):
    """As `pair`, of a method of peft on the origin itself."""
    host = load(family, 32, 2, 4)
    attached = attach(host, peft_method(name, host.spec.shape))
    purpose = Purpose(TASK, (attached.spec,) * 2, lambda: ROWS)
    return noisy(attached, 1), PortContext(
        host.spec, host.spec, attached.init_parameters(2), PortSpec("mine", "gradmask", "stretch"), load_host,
        purpose=purpose)


@pytest.mark.parametrize("name", ["lora", "rslora"])
def test_a_matrix_of_several_sites_is_split_as_one(load, name):
    """Of peft beside a GPT-2's query, key and value, which have one A."""
    module, context = of_peft(name, load, "gpt2")
    done = port(module, context)
    (into,) = {slot for slot in module.tensors if slot.role == "A" and "+" in slot.site and slot.layer == 1}

    def change(state):
        outs = [state.tensors[into._replace(role=f"B_{site}")].reshape(-1, 4)
                for site in into.site.split("+")]
        return (torch.cat(outs).double() @ state.tensors[into].double()).numpy()

    reading = Reading(context.receiving)
    weight = reading.host.model.transformer.h[1].attn.c_attn.weight.requires_grad_()
    (slope,) = torch.autograd.grad(reading.loss(drawn(ROWS, 32, context.seed)), weight)
    masked = np.where(change(module) * slope.T.double().numpy() < 0, change(module), 0)
    left, sizes, right = np.linalg.svd(masked, full_matrices=False)
    best = (left[:, :4] * sizes[:4]) @ right[:4]
    assert np.allclose(change(done.module), best, atol=1e-5 * np.abs(best).max())


@pytest.mark.parametrize(("name", "config"), [
    ("dora", "LoraConfig"), ("adalora", "AdaLoraConfig"), ("loha", "LoHaConfig"), ("vera", "VeraConfig")])
def test_gradmask_refuses_a_method_of_peft_that_is_no_plain_pair(load, name, config):
    with pytest.raises(UserError, match=rf"and method '{name}' \({config}\) has decoder.0"):
        port(*of_peft(name, load, "llama"))


@pytest.mark.parametrize("method", ["adapter", "prefix", "compacter"])
def test_gradmask_refuses_what_is_no_pair_by_name(pair, method):
    module, context = pair(method)
    with pytest.raises(UserError, match=rf"pairs \(LoRA, rsLoRA\), and method '{method}' \(\w+\) has"):
        port(module, by(context, "gradmask"))


# ---- in a study


@pytest.mark.system
@pytest.mark.parametrize("family", ["t5", "bert"])
def test_a_study_trains_its_ports_and_says_what_they_cost(data_folders, make_host, tmp_path, family):
    hosts = [f"host.nano-{name}-base.path={make_host(family, 32, 2, 4, seed).source}"
             for seed, name in enumerate(("raw", "tuned"))]
    got = small(data_folders, make_host, *hosts, "method=lora", "grid.inits=[ported]", "grid.seeds=[0]",
                "grid.budgets=[1]", "grid.ports=[pad,warm,distill,gradmask]", "grid.rates=[1,2]",
                "port.warm.options.updates=3", "port.distill.options.updates=2",
                "port.gradmask.options.examples=8",
                "port.distill.calibration={texts:nano_meals,tokens:200}")
    planned, store = plan(got.grid), Store(tmp_path / "store")
    stack = [run for run in planned.runs.values() if run.init.kind == "ported"]
    for run_id, run in planned.runs.items():
        if run not in stack:
            execute([run], {run_id: sorted(planned.marks[run_id])}, WorkerContext(store, got.data))
    execute(stack, {run.run_id: sorted(planned.marks[run.run_id]) for run in stack},
            WorkerContext(store, got.data))
    found = {}
    for run in stack:
        record = store.read(run.run_id)
        found[run.port.strategy, run.method.learning_rate] = (
            record["port_info"], record["train_info"]["metrics"][0]["eval_loss"])
    assert len(found) == 8
    updates = {strategy: info["updates"] for (strategy, _), (info, _) in found.items()}
    assert updates == {"pad": 0, "warm": 3, "distill": 2, "gradmask": 0}
    at_start = {key: loss for key, (_, loss) in found.items()}
    assert len({loss for (strategy, _), loss in at_start.items() if strategy in ("pad", "gradmask")}) == 2
    assert len({loss for (strategy, _), loss in at_start.items() if strategy in TRAINED}) == 4, (
        "a port that trains does so at its run's own learning rate")
    assert "24 labelled examples" in found["warm", 3e-3][0]["notes"][1]
    assert found["gradmask", 3e-3][0]["calibration_examples"] == 8


# ---- by the command


@pytest.fixture
def folder(load, make_host, tmp_path, monkeypatch):
    """Words of the command -> its exit code; an adapter of a llama, labels and texts lie in the folder."""
    monkeypatch.chdir(tmp_path)
    write_plain(tmp_path / "mine", load("llama", 32, 2, 4), "lora")
    lines = [json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    hosts = [make_host("llama", 32, 2, 4).source, make_host("llama", 48, 2, 4, 3).source]
    return lambda *words: main(["mine", "--from", hosts[0], "--to", hosts[1], "--out", "out", *words])


WARM = ("--strategy", "warm", "--labels", "rows.jsonl", "--template", TASK.template, "--option",
        "learning_rate=0.02", "--option", "updates=25", "--option", "of=pad")


def test_the_command_trains_a_port(folder, make_host, tmp_path, capsys):
    assert folder(*WARM) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "warm started from pad" in said and "25 updates on 200 labelled examples" in said
    card = (tmp_path / "out/README.md").read_text()
    assert "--labels rows.jsonl --template '{text} answer :' --label-words negative positive" in card
    assert "--option learning_rate=0.02 --option updates=25 --option of=pad" in card
    (tmp_path / "out").rename(tmp_path / "warm")
    assert folder("--strategy", "pad") == 0
    host, losses = load_host(make_host("llama", 48, 2, 4, 3)), []
    for name in ("out", "warm"):
        attached = attach(host, method_of(tmp_path / name))
        scorer, values = Scorer(host, TASK), parameters_of(read_folder(tmp_path / name), attached)
        found = scorer.predict({f"model.{key}": value[None] for key, value in values.items()},
                               encode(ROWS, host.tokenizer, TASK, True), 50)
        attached.detach()
        losses.append(float(found.nll.mean()))
    assert losses[1] < losses[0] - 0.2, losses


@pytest.mark.parametrize(("words", "says"), [
    (("--strategy", "warm"), "learns from labelled examples, and none are named: name some (--labels"),
    (("--strategy", "distill"), "what both hosts make of texts, and none are named"),
    (("--strategy", "warm", "--labels", "rows.jsonl"), "does not say with which learning rate it was"),
    (("--strategy", "pad", "--template", "{text} ?"), "--template is an option of --verify and"),
    (("--strategy", "warm", "--option", "updates"), "--option must be NAME=VALUE, got 'updates'"),
    (("--strategy", "warm", "--labels", "rows.jsonl", "--template", "?"), "--template must have {text}"),
])
def test_what_the_command_lacks_is_one_sentence(folder, tmp_path, capsys, words, says):
    assert folder(*words) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in says.split(".*")) and error.count("\n") == 1, error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("strategy", TRAINED)
def test_a_port_of_which_parts_stay_fresh_trains_once_from_the_librarys_numbers(
        folder, load, make_host, tmp_path, strategy, monkeypatch, capsys):
    """A wider host's magnitudes of DoRA, of which the origin has some, are the norms of its own rows."""
    write_plain(tmp_path / "dora", load("llama", 32, 2, 4), "dora")
    starts = []

    def counted(start, *more):
        starts.append({name: value.clone() for name, value in start.items()})
        return descend(start, *more)

    monkeypatch.setattr(trained, "descend", counted)
    words = ["dora", "--from", make_host("llama", 32, 2, 4).source, "--to",
             make_host("llama", 48, 2, 4, 3).source, "--out", "whole", "--template", TASK.template,
             "--option", "learning_rate=0.02", "--option", "updates=2", "--strategy", strategy]
    given = {"warm": ("--labels", "rows.jsonl"), "distill": ("--calibrate", "rows.jsonl")}[strategy]
    assert main([*words, *given]) == 0, capsys.readouterr().err
    assert len(starts) == 1
    host = load_host(make_host("llama", 48, 2, 4, 3))
    row = host.model.model.layers[0].self_attn.q_proj.weight[-1].norm()
    (own,) = [value for name, value in starts[0].items() if "magnitude" in name and ".0.self_attn.q" in name]
    assert own[-1] == pytest.approx(float(row), rel=1e-5) and own[-1] > 0


def test_the_command_distils_a_port(folder, capsys):
    assert folder("--strategy", "distill", "--calibrate", "rows.jsonl", "--calibrate-tokens", "300",
                  "--option", "learning_rate=0.01", "--option", "updates=2", "--dry-run",
                  "--template", TASK.template) == 0
    assert "2 updates on " in capsys.readouterr().out
