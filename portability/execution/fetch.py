"""Hosts of the hub are brought here, whole, before work begins."""

import logging
from collections.abc import Iterator, Mapping, Sequence

from portability.core.errors import UserError
from portability.core.specs import HostSpec, RunSpec
from portability.execution.processes import ChildDied, in_child
from portability.hosts.sources import check_unchanged
from portability.planning.plan import Plan

log = logging.getLogger(__name__)


def fetch_hosts(planned: Plan, todo: Mapping[str, RunSpec]) -> None:
    """Fetch the weights of the hub's hosts that runs need, those of origins and teachers among them, and see
    that they are what was planned with and what their config.json asks for; in a process of its own, since
    planning needs no torch.

    Raises:
        UserError: weights that cannot be fetched, are refused, or do not fit.
    """
    origins = (planned.runs[run.origin] for run in todo.values() if run.origin in planned.runs)
    runs = [*todo.values(), *origins]
    hosts = {host.fingerprint: host for run in runs for host in (run.host, run.teacher)
             if host is not None and host.revision is not None}
    if not hosts:
        return
    log.info("fetching the weights that are not here yet of %s",
             ", ".join(sorted(host.name for host in hosts.values())))
    try:
        for _ in in_child(_fetch, list(hosts.values())):
            pass
    except ChildDied as error:
        raise UserError(f"the hosts could not be fetched: {error}") from error


def _fetch(hosts: Sequence[HostSpec]) -> Iterator[str]:
    from portability.inits.extraction.weights import Weights

    for host in hosts:
        check_unchanged(host)
        Weights(host)  # holds names and shapes in the files' headers against the model's
        yield host.name
