"""What every kind of init promises, and that a port is made once for the starts that share it."""

import pytest

import portability.inits.start as start
from portability.core.init_kinds import INIT_KINDS
from portability.core.specs import InitSpec, MethodSpec, PortSpec
from portability.execution.execute import WorkerContext, execute
from portability.inits.extraction import extract
from portability.inits.kinds import INITS, InitContext, extraction_options
from portability.methods import attach
from portability.methods.module import equal
from portability.planning.plan import plan
from portability.porting.base import PortContext
from portability.porting.port import port
from portability.store import Store
from support.studies import small
from support.tiny import noisy

METHOD = MethodSpec("pairs", "portability", "LoRA", {"r": 3, "sites": ["attention", "ffn"]}, 1e-3)
OPTIONS = {"sampled": {"law": "normal"}}


@pytest.fixture(scope="module")
def sides(load):
    """The method on a large host and on a small one of the family t5."""
    return [attach(load("t5", *shape), METHOD) for shape in ((48, 3, 6), (32, 2, 4))]


def given(sides, kind, seed=0):
    """A context with what a kind declares, and the list of what was asked for."""
    large, small_ = sides
    asked, module = [], noisy(large, 1)
    specs = large.host.spec, small_.host.spec
    options = extraction_options(METHOD, InitSpec("e", "extracted", {"scores": "ones"}))

    def cut():
        return extract(*specs, [], options, 0)

    pad = PortSpec("pad", "pad", "stretch")
    providers = {
        "port": lambda: port(module, PortContext(*specs, small_.init_parameters(seed), pad)),
        "extraction": lambda: (cut()[0], None),
        "teacher": cut,
        "external": lambda: noisy(small_, 2),
    }
    watched = {need: _watched(need, providers[need], asked)
               for need in INIT_KINDS[kind].needs & providers.keys()}
    return InitContext(specs[1], METHOD, seed, (seed,), lambda: small_.init_parameters(seed),
                       **watched), asked


def _watched(need, give, asked):
    def ask():
        asked.append(need)
        return give()

    return ask


@pytest.mark.parametrize("kind", INITS)
def test_an_init_gives_a_module_of_the_receiving_host_and_repeats_itself(kind, sides):
    made, again = (INITS[kind](given(sides, kind)[0], OPTIONS.get(kind, {})) for _ in range(2))
    assert equal(made.module, again.module) and sides[1].to_parameters(made.module)
    traits = INIT_KINDS[kind]
    assert (made.frozen is not None) == traits.subtracts_start
    assert (made.report is not None) == bool(traits.needs & {"port", "teacher"})
    if made.frozen is not None:
        assert equal(made.frozen, made.module) and sides[1].to_frozen(made.frozen)


@pytest.mark.parametrize("kind", INITS)
def test_an_init_asks_for_what_it_declares_and_for_nothing_else(kind, sides):
    context, asked = given(sides, kind)
    INITS[kind](context, OPTIONS.get(kind, {}))
    assert set(asked) == INIT_KINDS[kind].needs - {"origin_module"}, "which is the port's to ask for"
    if asked:
        bare = InitContext(context.receiving, METHOD, 0, (0,), context.fresh)
        with pytest.raises(ValueError, match="what its kind does not declare"):
            INITS[kind](bare, OPTIONS.get(kind, {}))


def test_every_kind_that_planning_knows_can_be_started_but_the_bare_host():
    assert set(INITS) == set(INIT_KINDS) - {"bare"}
    assert {kind for kind, traits in INIT_KINDS.items() if not traits.offered} == {
        "bare", "extraction", "external"}


def test_a_port_is_made_once_for_the_starts_that_share_it(data_folders, make_host, tmp_path, monkeypatch):
    words = ("method=lora", "grid.inits=[ported,sampled,sampled_norm,shuffled,scratch]", "grid.budgets=[1]",
             "grid.ports=[pad,repeat]")
    got = small(data_folders, make_host, *words)
    planned, store, made = plan(got.grid), Store(tmp_path / "store"), []
    monkeypatch.setattr(start, "port", lambda module, known: made.append(known.spec.name)
                        or port(module, known))
    stacks: dict = {}
    for run in planned.runs.values():
        stacks.setdefault((run.host.name, run.data.name, run.origin is not None), []).append(run)
    for runs in sorted(stacks.values(), key=lambda runs: runs[0].origin is not None):
        execute(runs, {run.run_id: sorted(planned.marks[run.run_id]) for run in runs},
                WorkerContext(store, got.data))
    ported = [store.read(run_id) for run_id, run in planned.runs.items() if "port" in run.init.traits.needs]
    assert len(ported) == 2 * 2 * 4 and all(ported), "two seeds, two ports, four kinds"
    assert sorted(made) == ["pad"] * 2 + ["repeat"] * 2
    effects = {record["cell"]["init"]: record["port_info"]["effect_fraction"] for record in ported}
    assert effects["ported"] is None and effects["sampled_norm"] == pytest.approx(1, rel=0.02)
