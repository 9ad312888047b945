"""What peft's methods owe on hosts of every family: a sample in continuous integration, the product in
`full`."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file

from portability.core.architectures import FAMILIES
from portability.core.errors import UserError
from portability.core.specs import MethodSpec
from portability.methods import attach
from portability.methods.adapters_backend import prepare
from portability.methods.files import module_of, read_folder
from portability.methods.module import equal
from portability.tasks.classification import Scorer
from portability.tasks.members import member_map
from support.peft_methods import EVERY, KINDS, STARTING, method, refused, write_plain
from support.tiny import CONF, TASK, noisy
from support.training import SPEC, Bench

IDS = torch.randint(3, 20, (4, 7), generator=torch.Generator().manual_seed(0))
REAL = torch.ones_like(IDS)
REAL[1, 5:] = 0
each = pytest.mark.parametrize(("name", "family"), EVERY)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@each
def test_a_method_keeps_its_contract(load, name, family):
    host = load(family)
    scorer, own = Scorer(host, TASK), {key: value.clone() for key, value in host.model.state_dict().items()}
    head = scorer.fresh_head(0)
    bare = scorer.logits(head, IDS, REAL)
    if refused(name, family):
        with pytest.raises(UserError, match="peft refuses"):
            attach(host, method(name, host.spec.shape))
    else:
        attached = attach(host, method(name, host.spec.shape))
        fresh = attached.init_parameters(5)
        assert equal(attached.init_parameters(5), fresh)
        module = noisy(attached, 1)
        values = attached.to_parameters(module)
        assert equal(attached.to_state(values), module)
        given = {f"model.{key}": value for key, value in values.items()} | head
        changed = scorer.logits(given, IDS, REAL)
        assert (changed - bare).abs().max() > 1e-6
        with attached.disabled():
            assert torch.equal(scorer.logits(head, IDS, REAL), bare)
        assert torch.equal(scorer.logits(given, IDS, REAL), changed)
        attached.detach()
    left = host.model.state_dict()
    assert left.keys() == own.keys() and all(torch.equal(left[key], own[key]) for key in own)
    assert not any(parameter.requires_grad for parameter in host.model.parameters())
    assert torch.equal(scorer.logits(head, IDS, REAL), bare)


@each
def test_a_folder_of_peft_comes_in_and_goes_out_unchanged(load, tmp_path, name, family):
    """Folder -> module -> folder is bit-equal, and peft computes with it what this project does."""
    if refused(name, family):
        pytest.skip("peft refuses the method on this family, which the contract test shows")
    host = load(family)
    made = write_plain(tmp_path / "in", host, name)
    theirs = _logits(host, made.base_model.model)
    found = read_folder(tmp_path / "in")
    again = load(family)
    attached = attach(again, found.spec)
    values = attached.to_parameters(module_of(found, again.spec.shape))
    scorer = Scorer(again, TASK)
    given = {f"model.{key}": value for key, value in values.items()} | scorer.fresh_head(0)
    assert torch.allclose(scorer.logits(given, IDS, REAL), theirs, atol=1e-5)
    attached.save(values, tmp_path / "out", {"base_model_name_or_path": None})
    one, other = (load_file(tmp_path / side / "adapter_model.safetensors") for side in ("in", "out"))
    assert {key for key in one if "layers.0" not in key
            or "randlora_" not in key} >= other.keys() - one.keys()
    assert all(torch.equal(one[key], other[key]) for key in one.keys() & other.keys())
    assert not {key for key in one.keys() - other.keys() if not key.endswith(("randlora_A", "randlora_B"))}
    attached.detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = PeftModel.from_pretrained(load(family).model, tmp_path / "out")
    assert torch.allclose(_logits(again, loaded.base_model.model), theirs, atol=1e-5)


def _logits(host, model):
    scorer = Scorer(host, TASK)
    scorer.model = model
    return scorer.logits(scorer.fresh_head(0), IDS, REAL)


@pytest.mark.parametrize(("setting", "said"), [
    ({"lora_dropout": 0.1}, "lora_dropout=0.1 is not supported, set it to 0"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa cannot be ported, only with true or false or"),
    ({"bias": "all"}, "bias=all cannot be ported, only with none"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save=.* cannot be ported"),
    *(({key: value}, f"{key}=.* cannot be ported, only with") for key, value in {
        "layer_replication": [[0, 2]], "trainable_token_indices": [1], "lora_bias": True,
        "target_parameters": ["mlp.up_proj.weight"], "alora_invocation_tokens": [1], "use_qalora": True,
        "corda_config": {"use_float16_for_covariance": True}, "loftq_config": {"loftq_bits": 4},
        "megatron_config": {"a": 1}, "arrow_config": {"router_temperature": 1.0}, "use_bdlora": {"a": 1},
    }.items()),
    ({"rank": 3}, "unexpected keyword argument 'rank'"),
    ({"sites": ["atention"]}, "did you mean 'attention'"),
    ({"target_modules": ["nothing"]}, "peft refuses LoraConfig on host"),
])
def test_settings_that_cannot_be_kept_are_refused_by_name(load, setting, said):
    host = load("llama")
    spec = method("lora", host.spec.shape)
    settings = {**spec.settings, **setting}
    if "target_modules" in setting:
        settings.pop("sites")
    with pytest.raises(UserError, match=said):
        attach(host, type(spec)("mine", "peft", "LoraConfig", settings, 1e-3))


@pytest.mark.parametrize("name", ["lora", "dora", "vblora", "loha"])
def test_another_seed_draws_another_module(load, name):
    attached = attach(load("llama"), method(name, load("llama").spec.shape))
    assert not equal(attached.init_parameters(6), attached.init_parameters(5))


FILES = [MethodSpec(name, **values) for path in sorted((CONF / "method").glob("*.yaml"))
         for name, values in yaml.safe_load(path.read_text()).items() if values["library"] == "peft"]


@pytest.mark.parametrize("family", ["t5", "llama"])
@pytest.mark.parametrize("spec", [spec for spec in FILES if spec.name not in STARTING],
                         ids=lambda spec: spec.name)
def test_every_method_file_of_peft_stands_on_a_host(load, spec, family):
    assert attach(load(family), spec).layouts


@pytest.mark.parametrize("family", ["t5", "bert", "llama"])
def test_the_studys_lora_and_pefts_learn_the_same(load, family):
    """From the same start, on the same batches: losses of 30 updates within 1e-5."""
    pytest.importorskip("adapters", reason="the study's LoRA is of adapters")
    losses, start = [], None
    for name in ("lora", "lora_peft"):
        values = yaml.safe_load((CONF / "method" / f"{name}.yaml").read_text())[name]
        bench = Bench(attach(prepare(load(family)), MethodSpec(name, **values)))
        start = start or bench.attached.init_parameters(0)
        given = {f"model.{key}": value for key, value in bench.attached.to_parameters(start).items()}
        trained = bench.train([0], replace(SPEC, updates=30), starts=[given | bench.scorer.fresh_head(0)])
        losses.append(trained.losses[:, 0])
    assert (losses[0] - losses[1]).abs().max() <= 1e-5 and losses[0][-1] < losses[0][0]


@pytest.mark.parametrize(("name", "reason"), [
    ("lora", None), ("dora", None), ("vera", None), ("lokr", None), ("hra", None),
    ("miss", None), ("vblora", None), ("ia3", None), ("oft", "index_put"), ("fourierft", "index_put"),
    ("loha", "autograd.Function"), ("randlora", "autograd.Function"), ("c3a", "autograd.Function"),
    ("adalora", "broadcast shape"),
])
def test_members_are_stacked_or_taken_one_at_a_time_and_no_bit_shows_it(load, name, reason):
    bench = Bench(attach(load("llama"), method(name, load("llama").spec.shape)))
    rows = bench.scorer.rows(bench.data, np.array([0]), 1, bench.schedule.buckets[-1])
    bench.scorer.each, said = member_map(bench.scorer, bench.start(0), rows)
    assert (said is None) == (reason is None) and (reason is None or reason in said)
    three, alone = bench.train([1, 2, 3]), bench.train([2])
    assert torch.equal(bench.rows(three)[1], bench.rows(alone)[0])


def test_every_family_has_a_row_for_what_a_lora_needs():
    assert all({"key" in site or "query" in site for site in stack.values()} == {True, False}
               for rows in FAMILIES.values() for stack in rows.matrices.values())
    assert set(KINDS) >= {"lora", "ia3", "vera"}
