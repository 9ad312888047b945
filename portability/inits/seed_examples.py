"""The extraction behind a run: seed examples of the run's data in the teacher's tokens, and what is cut out
by them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from portability.core.errors import UserError, choose
from portability.core.seeds import stream_seed
from portability.core.specs import HostSpec, InitSpec, MethodSpec, RunSpec
from portability.data.splits import StudyData
from portability.hosts.sources import check_unchanged
from portability.inits.extraction import ExtractionOptions, ExtractReport, Seed, extract
from portability.methods.module import ModuleState
from portability.methods.subtractive_lora import lora_settings
from portability.store import Store
from portability.tasks.registry import task_of

OPTIONS = ("seeds", "layers", "structure", "split", "scores")  # of an init that starts from an extraction
SEEDS = 32  # examples, as in the reference (Zhong et al. 2024, n_sample of its sampling script)


def extraction_options(method: MethodSpec, init: InitSpec) -> ExtractionOptions:
    """The options of an init for a method: rank and sites are the method's, so that the pairs fit it.

    Raises:
        UserError: an unknown option or value, or a method that cannot take a start off the host.
    """
    if method.library != "portability":
        raise UserError(f"init '{init.name}' starts from pairs that are taken off the host, which method "
                        f"'{method.name}' of library {method.library} cannot do; use one of library "
                        "portability (method=lora_all)")
    for name in init.options:
        choose(str(name), OPTIONS, f"option of init '{init.name}'")
    settings = lora_settings(method.settings, method.name)
    blocks = settings.subtract == "block"
    if blocks and not init.traits.subtracts_blocks:
        raise UserError(f"init '{init.name}' has no block to take off the host, only pairs; leave it out "
                        f"(grid.inits), or set method.{method.name}.settings.subtract=product")
    values: dict[str, Any] = {name: str(value) for name, value in init.options.items() if name != "seeds"}
    return ExtractionOptions(rank=settings.r, sites=settings.sites, blocks=blocks, **values)


def seed_count(init: InitSpec) -> int:
    """How many seed examples an init asks for.

    Raises:
        UserError: not a whole number from 1 on.
    """
    count = init.options.get("seeds", SEEDS)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise UserError(f"init '{init.name}': seeds must be a whole number from 1 on, got {count!r}")
    return count


def extract_for(
    run: RunSpec, data: StudyData, store: Store, device: str = "cpu", free: Callable[[], int] = lambda: 1
) -> tuple[ModuleState, ExtractReport]:
    """The module of a run of kind `extraction`.

    Args:
        device: where it is computed.
        free: gives the threads that it may use now.

    Raises:
        UserError: what `extract` raises.
    """
    if run.teacher is None or run.method is None:
        raise ValueError(f"run {run.run_id} is no extraction")
    for host in (run.teacher, run.host):
        check_unchanged(host)
    options = extraction_options(run.method, run.init)
    seeds = [] if options.scores == "ones" else seed_examples(run, run.teacher, data)
    head = store.tensors(run.origin, "head")[0] if run.origin else None
    return extract(run.teacher, run.host, seeds, options, int(run.seed or 0), head, device, free)


def seed_examples(run: RunSpec, teacher: HostSpec, data: StudyData) -> list[Seed]:
    """Examples of the run's training data with their gold answers, drawn by the run's seed without
    replacement, asked and answered as in training: the answer is the first token of the label word.

    Raises:
        UserError: the training data has fewer examples.
    """
    count = seed_count(run.init)

    def draw(size: int) -> list[int]:
        if count > size:
            raise UserError(f"init '{run.init.name}' asks for {count} seed examples, and the training split "
                            f"of data set '{run.data.name}' has {size}; set a smaller "
                            f"init.{run.init.name}.options.seeds")
        return np.random.default_rng(stream_seed(run.seed, "extraction",
                                                 "seeds")).permutation(size)[:count].tolist()

    return [Seed(*one) for one in task_of(run.task).answered(teacher, data, run.data.name, draw)]
