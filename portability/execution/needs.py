"""What runs need of a worker's memory at least, held against what is there: before work."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from portability.core.errors import UserError
from portability.core.specs import RunSpec
from portability.core.wording import counted
from portability.execution.processes import in_child
from portability.hosts.devices import Place, free_memory

log = logging.getLogger(__name__)
LITTLE = 2**30  # bytes that every machine and GPU has: of less nothing is said (our choice)


def largest_need(found: Mapping[str, Mapping[str, Any]], runs: Mapping[str, RunSpec]) -> tuple[int, str]:
    """Bytes that the most demanding run needs at least, and what for.

    Args:
        found: by run id, what its rehearsal gave (rehearse.Rehearsal.of).
    """
    needs = {run_id: int(found[run_id]["memory"][run.precision]) for run_id, run in runs.items()
             if run_id in found}
    if not needs:
        return 0, ""
    run = runs[max(needs, key=lambda run_id: needs[run_id])]
    more = f"an extraction from '{run.teacher.name}'" if run.teacher else "a module"
    return max(needs.values()), f"'{run.host.name}' in {run.precision} with {more}"


def largest_load(found: Mapping[str, Mapping[str, Any]], runs: Mapping[str, RunSpec]) -> tuple[int, str]:
    """Bytes of ordinary memory that reading the largest host takes at most, wherever it is computed, and its
    name."""
    return max(((int(found[run_id]["loading"]), run.host.name) for run_id, run in runs.items()
                if run_id in found), default=(0, ""))


def need_lines(found: Mapping[str, Mapping[str, Any]], runs: Mapping[str, RunSpec]) -> list[str]:
    """The need in words, where it is not little, and that of reading a host where it is more."""
    (need, what), (load, host) = largest_need(found, runs), largest_load(found, runs)
    said = f"memory of a worker: at least {_said(need)} ({what}), activations beside"
    more = f"ordinary memory of a worker: up to {_said(load)} while '{host}' is read, in fp32"
    return [said] * (need > LITTLE) + [more] * (load > max(need, LITTLE))


def check_memory(found: Mapping[str, Mapping[str, Any]], runs: Mapping[str, RunSpec],
                 here: Sequence[Place]) -> None:
    """Refuse runs whose weights alone do not fit where they are computed with; warn where ordinary memory,
    through which they come, may be too little; where workers are elsewhere, say what they need.

    Raises:
        UserError: names the hosts, what they need and what is free.
    """
    need, what = largest_need(found, runs)
    if not here:
        for line in need_lines(found, runs):
            log.info("%s", line)
        return
    place, busy = here[0], min(len(here), len(runs))  # a worker without a run holds nothing
    _check_device(place, busy, need, what)
    load, host = largest_load(found, runs)
    if load and load > (room := free_memory() // busy):
        log.warning("'%s' takes up to %s of ordinary memory while it is read in fp32 (less where its files "
                    "are fp32), and each of %s has %s; should a worker be killed, take fewer engine.workers",
                    host, _said(load), counted(busy, "worker"), _said(room))


def _check_device(place: Place, busy: int, need: int, what: str) -> None:
    """Hold a need against what is free on the workers' device.

    Args:
        busy: how many workers have a run.
        what: needs it.

    Raises:
        UserError: it is more.
    """
    device = "all GPUs together" if place.device_map and place.device != "cpu" else place.device
    if device == "cpu":
        free = free_memory()
    elif need > LITTLE:
        (free,) = in_child(_on_gpu, None if place.device_map else device)
    else:
        return
    if need and need > (room := int(free * max(place.share, 1 / busy))):
        raise UserError(f"{what} needs at least {_said(need)} of memory, activations beside, and each of "
                        f"{counted(busy, 'worker')} has {_said(room)} on {device}; take fewer "
                        "engine.workers, precision=bf16, or a machine with more")


def _on_gpu(device: str | None) -> Iterator[int]:
    """In a process of its own: bytes that are free on a GPU, or on all of them (None)."""
    import torch

    devices = range(torch.cuda.device_count()) if device is None else [torch.device(device)]
    yield sum(torch.cuda.mem_get_info(one)[0] for one in devices)


def _said(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
