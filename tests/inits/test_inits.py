"""The starts, and the controls."""

import numpy as np
import pytest
import torch

from portability.core.errors import UserError
from portability.core.init_kinds import INIT_KINDS
from portability.core.specs import InitSpec, MethodSpec, PortSpec
from portability.inits.extraction import extract
from portability.inits.kinds import DISTRIBUTIONS, INITS, InitContext, extraction_options
from portability.methods import attach
from portability.methods.module import equal
from portability.porting.base import PortContext
from portability.porting.port import port
from support.pairs import over
from support.tiny import METHODS, noisy

PORTED = [kind for kind, traits in INIT_KINDS.items() if "port" in traits.needs]
CUT = [kind for kind, traits in INIT_KINDS.items() if traits.subtracts_start and traits.offered]
PAD = PortSpec("pad", "pad", "stretch")


@pytest.fixture(scope="module")
def mounted(mount):
    made = {}

    def get(method, *shape):
        shape = shape or ("t5", 32, 2, 4)
        if (method, shape) not in made:
            made[method, shape] = mount(method, *shape)
        return made[method, shape]

    return get


def given(source, target, seed=0, **more):
    return InitContext(target.host.spec, target.spec, seed, (seed,), lambda: target.init_parameters(seed),
                       port=lambda: carry(source, target, seed), **more)


def carry(source, target, seed=0):
    return port(noisy(source, 1), PortContext(source.host.spec, target.host.spec,
                                              target.init_parameters(seed), PAD))


def start(kind, have, **options):
    return INITS[kind](have, options)


@over(shape=[("t5", 32, 2, 4), ("t5", 48, 3, 6), ("t5", 16, 2, 4)], kind=["scratch", *PORTED], method=METHODS)
def test_every_init_fits_the_receiving_host_and_repeats_itself(mounted, method, kind, shape):
    have = given(mounted(method), mounted(method, *shape))
    options = {"law": "normal"} if kind == "sampled" else {}
    module, again = (start(kind, have, **options).module for _ in range(2))
    assert equal(module, again) and mounted(method, *shape).to_parameters(module)


@pytest.mark.parametrize("kind", CUT)
@pytest.mark.parametrize("family", ["t5", "llama"])
def test_every_start_that_is_taken_off_the_host_fits_it_and_repeats_itself(load, kind, family):
    teacher, student = load(family, 48, 3, 6), load(family, 32, 2, 4)
    method = MethodSpec("pairs", "portability", "LoRA", {"r": 3, "sites": ["attention", "ffn"]}, 1e-3)
    mounted = attach(student, method)
    options = extraction_options(method, InitSpec("e", "extracted", {"scores": "ones"}))
    cut, _ = extract(teacher.spec, student.spec, [], options, 0)
    have = InitContext(student.spec, method, 0, (0,), lambda: mounted.init_parameters(0),
                       extraction=lambda: (cut, None))
    made, again = start(kind, have), start(kind, have)
    assert equal(made.module, again.module) and mounted.to_parameters(made.module) and mounted.to_frozen(
        made.frozen)
    assert equal(made.module, made.frozen) and equal(made.module, cut) == (kind == "extracted")


def test_another_seed_gives_another_scratch_and_sample(mounted):
    source = mounted("adapter")
    for kind, options in (("scratch", {}), ("sampled", {"law": "normal"}), ("sampled", {"law": "permute"})):
        one, other = (start(kind, given(source, source, seed), **options).module for seed in (0, 1))
        assert not equal(one, other)


@pytest.mark.parametrize("method", METHODS)
def test_a_permuted_sample_holds_the_very_numbers_of_the_ported_module(mounted, method):
    have = given(mounted(method), mounted(method, "t5", 48, 3, 6))
    ported, sample = have.port(), start("sampled", have, law="permute").module
    moved = 0
    for slot, tensor in sample.tensors.items():
        mask = ported.carried[slot]
        assert torch.equal(tensor[mask].sort().values, ported.module.tensors[slot][mask].sort().values)
        assert torch.equal(tensor[~mask], ported.module.tensors[slot][~mask])
        moved += not torch.equal(tensor, ported.module.tensors[slot])
    assert moved > len(sample.tensors) / 2


def test_a_normal_sample_has_the_law_of_what_was_carried_not_of_the_padding(mounted):
    source, target = mounted("lora", "t5", 32, 2, 4), mounted("lora", "t5", 96, 2, 4)
    have = given(source, target)
    ported, sample = have.port(), start("sampled", have, law="normal").module
    pooled = []
    for slot, tensor in sample.tensors.items():
        mask = ported.carried[slot]
        law = ported.module.tensors[slot][mask]
        pooled.append((tensor[mask] - law.mean()) / law.std(correction=0))
        assert not tensor[~mask].any()
    values = torch.cat(pooled)
    assert abs(float(values.mean())) < 0.03 and abs(float(values.std()) - 1) < 0.03


def test_the_normal_law_has_the_standard_deviation_of_all_entries():
    """Two entries, 0 and 2: mean 1, deviation 1 (and 1.41 if they were taken as a sample)."""
    drawn, noise = (torch.Generator().manual_seed(3) for _ in range(2))
    law = DISTRIBUTIONS["normal"](torch.tensor([0.0, 2.0]), drawn)
    assert torch.allclose(law, 1.0 + torch.randn(2, generator=noise))


def test_the_function_matched_sample_moves_the_logits_as_the_ported_module_does(mounted):
    from portability.tasks.classification import Scorer
    from support.tiny import TASK
    host = mounted("adapter")
    scorer = Scorer(host.host, TASK)
    ids = torch.randint(3, 20, (16, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    with host.disabled():
        bare = scorer.logits({}, ids, mask)

    def change(module):
        values = {f"model.{name}": value for name, value in host.to_parameters(module).items()}
        with torch.no_grad():
            return float((scorer.logits(values, ids, mask) - bare).norm())

    have = given(host, host, change=change, calibration_examples=16)
    ported, plain = start("ported", have).module, start("sampled", have, law="normal").module
    done = start("sampled", have, law="normal", match="function_norm")
    assert change(done.module) == pytest.approx(change(ported), rel=1e-2)
    assert abs(change(plain) / change(ported)
               - 1) > 0.02, "the plain sample matched already: the test shows nothing"
    assert done.report.calibration_examples == 16
    assert done.report.effect_fraction == pytest.approx(1, rel=1e-2)


@pytest.mark.parametrize("height", [0.4, 1.5], ids=["never so far", "always further"])
def test_a_sample_that_cannot_be_matched_is_the_nearest_and_says_how_near(mounted, height):
    host = mounted("adapter")
    ported = start("ported", given(host, host)).module
    norm = lambda module: sum(float(tensor.square().sum()) for tensor in module.tensors.values()) ** 0.5  # noqa: E731
    own = norm(ported)

    def change(module):
        """1 of the ported module; of others a hill, or a valley, whose top is at four times, or a quarter of,
        its norm."""
        if equal(module, ported):
            return 1.0
        far = np.log2(norm(module) / own) - (2 if height < 1 else -2)
        return height + (-0.01 if height < 1 else 0.01) * far**2

    done = start("sampled", given(host, host, change=change), law="normal", match="function_norm")
    assert norm(done.module) / own == pytest.approx(4 if height < 1 else 0.25, rel=0.5)
    assert done.report.effect_fraction == pytest.approx(height, abs=0.01)


def test_shuffling_keeps_the_tensors_and_moves_the_layers(mounted):
    have = given(mounted("lora"), mounted("lora", "t5", 32, 3, 4))
    ported, other = start("ported", have).module, start("shuffled", have).module
    assert not equal(ported, other)
    total = [sum(float(t.double().sum()) for s, t in m.tensors.items() if s.site == "query")
             for m in (ported, other)]
    assert total[0] == pytest.approx(total[1])


@pytest.mark.parametrize("seed", range(8))
def test_shuffling_never_gives_the_ported_module_back(mounted, seed):
    """2 layers stretched over 3: the first two are alike, and exchanging them would be no control."""
    have = given(mounted("lora"), mounted("lora", "t5", 32, 3, 4), seed)
    assert not equal(start("ported", have).module, start("shuffled", have).module)
    flat = given(mounted("lora", "t5", 16, 1, 4), mounted("lora", "t5", 16, 1, 4), seed)
    with pytest.raises(UserError, match="no layers to exchange"):
        start("shuffled", flat)


def test_unknown_laws_are_refused_with_the_choices(mounted):
    with pytest.raises(UserError, match="normal, permute"):
        start("sampled", given(mounted("lora"), mounted("lora")), law="cauchy")
