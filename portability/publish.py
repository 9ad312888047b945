"""The command `portability publish results/ --to wandb`: files every study's runs in W&B, each
once.

Runs are filed as `tracking` does while a study runs, with what only the whole study can say: how a run
compares with its scratch twin, its module as an artifact, and the module that it started from. What was filed
is remembered, so a repeated call sends only what is new.
"""

import logging
import sys
from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from graphlib import TopologicalSorter
from typing import Any

from tqdm import tqdm

from portability.analysis.load import read
from portability.analysis.metrics import metric_of
from portability.core.command_line import carry_out
from portability.core.errors import UserError, redact_paths
from portability.dashboard import save
from portability.options import parser
from portability.store import Store, studies
from portability.study_run import comparisons, study_entry
from portability.tracking.entries import STUDY, Entry, Module, entry_of
from portability.tracking.runs import Tracker, TrackingSpec, has_key, resolve_mode

log = logging.getLogger(__name__)
IN_A_ROW = 5  # refusals by W&B before a study is given up (our choice): each may take 20 s


def main(arguments: Sequence[str] | None = None) -> int:
    """Publish every study below a folder; gives back the exit code."""
    return carry_out(parser("publish"), work, arguments)


def work(options: Namespace) -> int:
    """Publish each study; 1 where some run was not filed.

    Raises:
        UserError: no study there, or W&B cannot be reached as was asked.
    """
    mode, failed = resolve_mode(options.mode), False
    if mode == "disabled":
        raise UserError("WANDB_MODE is disabled; give --mode offline or --mode online to send something")
    if options.dashboard and (mode != "online" or not has_key()):
        raise UserError("a dashboard is kept by W&B alone, so it needs a key (wandb login) and mode online")
    for store in studies(options.results):
        root = store.root.resolve()
        spec = TrackingSpec(mode, options.project, root)
        count = publish(store, spec, options.only_study)
        failed |= bool(count["failed"])
        where = f"W&B project {spec.project}" if mode == "online" else f"{store.root / 'wandb'} (offline)"
        if options.only_study and not count["failed"]:
            sys.stdout.write(f"W&B: the study's verdict, gains and charts are in {where}\n")
            continue
        sys.stdout.write(f"{store.root}: {count['sent']:,} sent to {where}, {count['known']:,} were there "
                         f"already, {count['failed']:,} failed\n")
        if mode == "offline" and count["sent"]:
            sys.stdout.write("To send it: this command with --mode online (origins first), or, in any order, "
                             f"wandb sync {store.root}/wandb/offline-run-*\n")
        if options.dashboard:
            metric = metric_of(read(store, None).metric)
            url = save(spec.project, Tracker(spec).place("online"), root, metric)
            sys.stdout.write(f"Dashboard: {url}\n")
    return int(failed)


def publish(store: Store, spec: TrackingSpec, only_study: bool = False) -> Counter[str]:
    """File a study's runs, origins before what starts from them, and last (or only) the study's own run;
    gives back how many were sent, known or failed.

    A run that is broken, or that W&B refuses, is named and left out; the others go on.

    Raises:
        UserError: no study there; or W&B refused so many runs in a row that the others would fare no better.
    """
    count, tracker, refused = Counter[str](), Tracker(spec), 0
    if only_study:
        store.compact()  # its records are read at once then
    chosen = [(STUDY, partial(study_entry, store))] if only_study else list(entries(store))
    for run_id, make in tqdm(chosen, desc=spec.folder.name, unit="run", disable=None):
        entry = None
        try:
            entry = make()
            count["sent" if tracker.send(entry) else "known"] += 1
            refused = 0
        except Exception as error:  # of a broken record or module, or whatever W&B may raise
            text = f"it has no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
            what = "W&B did not take it" if entry else "its record or module cannot be used"
            log.error("run %s: %s: %s", run_id, what, redact_paths(text))
            count["failed"] += 1
            refused += entry is not None
            if refused == IN_A_ROW:
                raise UserError(f"W&B did not take {refused} runs in a row of {store.root} "
                                f"({redact_paths(text)}); repeat the command when it is right") from error
    return count


def entries(store: Store) -> Iterator[tuple[str, Callable[[], Entry]]]:
    """Each run with what makes what W&B is told of it: broken ones first, then origins before what starts
    from them, and last the study itself. Where an origin's module is broken, a run is sent without that.

    What makes an entry raises:
        UserError: the run's record or a file of it is broken.
        LookupError, TypeError, AttributeError: the record lacks what W&B is told.
    """
    cells, faults, origins = read(store, None).cells, {}, {}
    for run_id, record, fault in store.entries():
        if record is None or fault:
            faults[run_id] = str(fault)
        else:
            origins[run_id] = (record.get("spec") or {}).get("origin")
    graph = {run_id: [origin] if origin in origins else [] for run_id, origin in origins.items()}
    order = list(TopologicalSorter(graph).static_order())
    sweeps: defaultdict[Any, dict[str, None]] = defaultdict(dict)  # whose cells name a run, in order
    for manifest in store.manifests():
        for cell in manifest["cells"] if manifest.get("sweep") else ():
            for key in ("run_id", "native_id", "bare_id"):
                sweeps[cell[key]][manifest["sweep"]] = None
    for run_id in reversed(order):  # a sweep needs the origins of its runs too
        sweeps[origins[run_id]] |= sweeps[run_id]
    numbers, modules = comparisons(cells), dict[str, Module | None]()

    def entry(run_id: str) -> Entry:
        if run_id in faults:
            raise UserError(faults[run_id])
        modules[run_id] = _module(store, run_id)
        record: Any = store.read(run_id)
        origin = modules.get(record["spec"].get("origin"))
        return entry_of(record, sweeps[run_id], numbers.get(run_id), modules[run_id], origin,
                        store.root.resolve().name)

    yield from ((run_id, partial(entry, run_id)) for run_id in (*faults, *order))
    yield STUDY, partial(study_entry, store)


def _module(store: Store, run_id: str) -> Module | None:
    """A run's module, its files checked; None where it has none, as in a published copy."""
    if store.published:
        return None
    checked = store.inspect(run_id)
    if checked.faults:
        raise UserError(checked.faults[0])
    sha256 = checked.digests.get("module.safetensors")
    return Module(run_id, store.folder(run_id).resolve() / "module.safetensors", sha256) if sha256 else None


if __name__ == "__main__":
    sys.exit(main())
