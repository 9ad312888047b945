"""What every backend of methods owes, held against every file of conf/method on hosts of every family."""

from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest
import torch
import yaml

from portability import methods
from portability.core import plugins
from portability.core.errors import UserError
from portability.core.specs import MethodSpec
from portability.methods import BACKENDS, attach
from portability.methods.adapters_backend import prepare
from portability.methods.module import equal
from portability.methods.subtractive_lora import LoraBackend
from portability.tasks.classification import Scorer
from support.tiny import CONF, FAMILIES, METHODS, TASK, noisy

SPECS = [MethodSpec(name, **values) for path in sorted((CONF / "method").glob("*.yaml"))
         for name, values in yaml.safe_load(path.read_text()).items()]
IDS = torch.randint(3, 20, (4, 7), generator=torch.Generator().manual_seed(0))
REAL = torch.ones_like(IDS)
OURS_TO_SHOW = [spec for spec in SPECS if spec.library != "peft" or spec.name == "lora_peft"]
each = pytest.mark.parametrize(  # peft's other methods: test_peft_contract.py
    ("spec", "family"), [(spec, family) for spec in OURS_TO_SHOW for family in FAMILIES],
    ids=lambda one: getattr(one, "name", one))


def fitting(spec, host):
    """The method, without the sites that an encoder lacks."""
    if spec.library != "portability" or host.scoring == "label":
        return spec
    return replace(spec, settings={**spec.settings, "sites": ["attention", "ffn"]})


def bits(host):
    """Name -> a host's own parameters."""
    return {name: value.clone() for name, value in host.model.named_parameters()}


def test_every_library_has_a_file():
    assert {spec.library for spec in SPECS} == set(BACKENDS)


@each
def test_a_backend_keeps_its_contract(load, spec, family):
    host = prepare(load(family))
    scorer, own = Scorer(host, TASK), bits(host)
    head = scorer.fresh_head(0)
    bare = scorer.logits(head, IDS, REAL)
    attached = attach(host, fitting(spec, host))

    fresh = attached.init_parameters(5)
    torch.manual_seed(123)
    after = torch.random.get_rng_state()
    assert equal(attached.init_parameters(5), fresh)
    begins_with_ones = spec.name == "ia3_adapters"
    assert equal(attached.init_parameters(6), fresh) == begins_with_ones
    assert torch.equal(torch.random.get_rng_state(), after)
    module = noisy(attached, 1)
    parameters = attached.to_parameters(module)
    assert equal(attached.to_state(parameters), module)
    assert {name: tuple(value.shape) for name, value in parameters.items()} == attached.shapes
    with pytest.raises(ValueError, match="does not fit host"):
        attached.to_parameters(module.map(dict(list(module.tensors.items())[1:])))

    values = {f"model.{name}": value for name, value in parameters.items()} | head
    changed = scorer.logits(values, IDS, REAL)
    with attached.disabled():
        assert torch.equal(scorer.logits(head, IDS, REAL), bare)
    assert torch.equal(scorer.logits(values, IDS, REAL), changed)
    assert not torch.allclose(changed, bare, atol=1e-4)
    attached.detach()
    left = bits(host)
    assert left.keys() == own.keys() and all(torch.equal(left[name], own[name]) for name in own)
    assert not any(parameter.requires_grad for parameter in host.model.parameters())
    assert torch.equal(scorer.logits(head, IDS, REAL), bare)


@pytest.mark.parametrize(("name", "scale"), [
    ("lora", 2.0), ("lora_all", 1.0), ("adapter", 1.0), ("prefix", 1.0)])
def test_the_scale_is_what_multiplies_a_product(load, name, scale):
    assert attach(load(), next(spec for spec in SPECS if spec.name == name)).scale == scale


@pytest.mark.parametrize("family", FAMILIES)
def test_no_library_is_needed_for_a_host_and_none_changes_its_function(load, family):
    """The layers that adapters puts into a host compute, without a method, what transformers' own compute."""
    host = load(family)
    assert not [part for part in host.model.modules() if type(part).__module__.startswith("adapters")]
    own = next(spec for spec in SPECS if spec.library == "portability")
    scorer, head = Scorer(host, TASK), Scorer(host, TASK).fresh_head(0)

    def found():
        method = attach(host, fitting(own, host))
        modules = [method.to_parameters(noisy(method, seed)) for seed in (1, 2)]
        members = [{f"model.{name}": value for name, value in module.items()} | head for module in modules]
        stacked = {name: torch.stack([one[name] for one in members]) for name in members[0]}
        with torch.no_grad():
            logits = scorer.stacked_logits(stacked, IDS, REAL)
        method.detach()
        return torch.cat([logits, scorer.logits(head, IDS, REAL)[None]])

    before = found()
    attach(host, METHODS["adapter"]).detach()
    assert [part for part in host.model.modules() if type(part).__module__.startswith("adapters")]
    after = found()
    assert torch.allclose(after, before, atol=1e-5)
    attach(host, METHODS["prefix"]).detach()
    assert torch.equal(found(), after)


# ---- libraries of other packages


class Outside(LoraBackend):
    """A library of another package."""


@pytest.fixture
def offers(monkeypatch):
    """Have an installed package offer a library: name, where it is."""
    def offer(name, value="test_method_contract:Outside"):
        found = {methods.GROUP: [EntryPoint(name, value, methods.GROUP)]}
        monkeypatch.setattr(plugins, "entry_points", lambda group: found.get(group, []))
        plugins.plugins.cache_clear()

    yield offer
    monkeypatch.undo()
    plugins.plugins.cache_clear()


OURS = MethodSpec("mine", "elsewhere", "LoRA", {"r": 2, "sites": ["attention"]}, 1e-3)


def test_a_library_of_another_package_is_found(load, offers):
    with pytest.raises(UserError, match="PEFT library 'elsewhere'; choose one of: adapters, peft, portab"):
        attach(load(), OURS)
    offers("elsewhere")
    assert attach(load(), OURS).init_parameters(0).entries > 0


def test_a_library_cannot_take_the_place_of_one_of_ours(load, offers):
    offers("adapters")
    with pytest.raises(UserError, match="adds 'adapters' to portability.methods, a name that is already"):
        attach(load(), METHODS["lora"])


def test_a_library_that_is_not_installed_is_one_sentence(load, offers):
    offers("elsewhere", "no_such_package:Backend")
    with pytest.raises(UserError, match="'elsewhere' .* cannot be imported .*; install it whole, or"):
        attach(load(), OURS)


def test_a_method_that_fails_leaves_the_host_free(load):
    host = load()
    with pytest.raises(UserError, match="no meaning is known"):
        attach(host, MethodSpec("mine", "adapters", "SeqBnConfig", {"ln_after": True}, 1e-3))
    with pytest.raises(UserError, match="adds no parameter"):
        attach(host, MethodSpec("mine", "adapters", "LoRAConfig", {"selfattn_lora": False}, 1e-3))
    assert attach(host, METHODS["lora"]).layouts
