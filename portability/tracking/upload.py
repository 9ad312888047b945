"""The command `python -m portability.publish results/ --to wandb`: files every study's runs in W&B, each once.

Runs are filed as `tracking` does while a study runs, with what only the whole study can say: how a run compares with
its scratch twin, its module as an artifact, and the module that it started from. What was filed is remembered, so a
repeated call sends only what is new.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.arms import arm_of
from analysis.load import COORDINATES, read
from analysis.stats import paired
from portability.core.errors import UserError, without_places
from portability.core.specs import BARE
from portability.store import Store, studies
from portability.store.integrity import check
from portability.tracking.runs import Entry, Module, Tracker, TrackingSpec, entry_of, has_key, resolve_mode

log = logging.getLogger(__name__)
TARGETS = ("wandb",)
IN_A_ROW = 5  # entries that W&B refuses one after the other before a study is given up (our choice): each may take 20 s
FILE = "module.safetensors"
CELLS = [*COORDINATES, "run_id", "mark", "status", "value", "bare", "native", "lift"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Publish every study below a folder; 0 when all is filed, 1 when some run is not, 2 when the user must change
    something."""
    parser = argparse.ArgumentParser(prog="python -m portability.publish", description=__doc__)
    parser.add_argument("results", type=Path, help="results folder, or one study's folder")
    parser.add_argument("--to", required=True, choices=TARGETS)
    parser.add_argument("--mode", default="auto", choices=("auto", "offline", "online"),
                        help="auto: $WANDB_MODE, else online if a key is found, else offline")
    parser.add_argument("--project", help="W&B project; by default portability-STUDY, as while a study runs")
    parser.add_argument("--dashboard", action="store_true", help="save a workspace with the comparisons too (needs a key)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        return int(_publish_all(options))
    except (UserError, OSError) as error:
        sys.stderr.write(f"portability: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("portability: interrupted; what was sent is remembered, repeat the command to go on\n")
        return 130


def _publish_all(options: argparse.Namespace) -> bool:
    """Publish each study; whether anything failed."""
    mode = resolve_mode(options.mode)
    if mode == "disabled":
        raise UserError("WANDB_MODE is disabled, so nothing would be sent; give --mode offline or --mode online")
    if options.dashboard and (mode != "online" or not has_key()):
        raise UserError("a dashboard is kept by W&B alone, so it needs a key (wandb login) and mode online")
    failed = False
    for store in studies(options.results):
        spec = TrackingSpec(mode, options.project or f"portability-{store.root.resolve().name}", store.root.resolve())
        count = publish(store, spec)
        failed |= bool(count.failed)
        sys.stdout.write(f"{_summary(store, spec, count)}\n")
        if options.dashboard:
            from portability.tracking.workspace import save

            sys.stdout.write(f"Dashboard: {save(spec.project, Tracker(spec).place('online'), spec.folder)}\n")
    return failed


@dataclass
class Count:
    """What became of a study's runs: sent now, sent before, and failed with the reason."""

    sent: int = 0
    known: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def publish(store: Store, spec: TrackingSpec) -> Count:
    """File a study's runs, origins before what starts from them, and last a run with the tables of all cells and gains.

    A run that is broken, or that W&B refuses, is named and left out; the others go on.

    Raises:
        UserError: no study there; or W&B refused so many runs in a row that the others would fare no better.
    """
    from tqdm import tqdm

    count, tracker, refused = Count(), Tracker(spec), 0
    with tqdm(desc=store.root.resolve().name, unit="run", disable=None) as bar:
        for run_id, prepare in _entries(store):
            bar.update()
            try:
                entry = prepare()
            except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
                _name(count, run_id, f"its record or module cannot be used: {_words(error)}")
                continue
            try:
                sent = tracker.send(entry)
                refused = 0
            except Exception as error:  # whatever W&B may raise
                _name(count, run_id, f"W&B did not take it: {_words(error)}")
                refused += 1
                if refused == IN_A_ROW:
                    raise UserError(f"W&B did not take {refused} runs in a row of {store.root} ({_words(error)}); what was "
                                    "sent is remembered, repeat the command when it is put right") from error
                continue
            count.sent += sent
            count.known += not sent
    return count


def _name(count: Count, run_id: str, why: str) -> None:
    count.failed[run_id] = why
    log.error("run %s: %s", run_id, why)


def _words(error: Exception) -> str:
    text = f"it has no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
    return without_places(text)


def _summary(store: Store, spec: TrackingSpec, count: Count) -> str:
    where = f"W&B project {spec.project}" if spec.mode == "online" else f"{store.root / 'wandb'} (offline)"
    line = f"{store.root}: {count.sent:,} sent to {where}, {count.known:,} were there already, {len(count.failed):,} failed"
    if spec.mode == "offline" and count.sent:
        line += ("\nTo send it: this command with --mode online (origins first), or, in any order, "
                 f"wandb sync {store.root / 'wandb'}/offline-run-*")
    return line


# ---- what is sent


def _entries(store: Store) -> Iterator[tuple[str, Callable[[], Entry]]]:
    """Run id and what makes its entry (and may fail), origins first; last the study's own."""
    cells = read(store, None).cells
    origins, faults = _origins(store)
    depths = {run_id: _depth(run_id, origins) for run_id in origins}
    notes, modules = comparisons(cells), Modules(store)
    sweeps = _sweeps(store, [(run_id, origins[run_id]) for run_id in sorted(depths, key=lambda one: -depths[one])])
    for run_id, fault in faults.items():
        yield run_id, partial(_refuse, fault)
    for depth in range(max(depths.values(), default=-1) + 1):
        for run_id, record, fault in store.entries():
            if record is not None and not fault and depths.get(run_id) == depth:
                tags, note = list(sweeps.get(run_id, ())), notes.get(run_id)
                yield run_id, partial(_entry, record, tags, note, modules)
    yield "study", partial(study_entry, store, cells)


def _refuse(fault: str) -> Entry:
    raise UserError(fault)


def _entry(record: dict[str, Any], sweeps: Sequence[str], notes: Mapping[str, float] | None, modules: "Modules") -> Entry:
    """A run's entry; where its origin's module is broken, which is named with the origin, its lineage waits for a sound one."""
    origin = record["spec"].get("origin")
    module = modules.of(record["run_id"])
    return entry_of(record, sweeps, notes, module, modules.found.get(origin) if origin else None)


class Modules:
    """Modules of a study as artifacts, each checked against its record once; a published copy has none."""

    def __init__(self, store: Store):
        self.store = store
        self.found: dict[str, Module | None] = {}

    def of(self, run_id: str) -> Module | None:
        """A run's module, or None for a run without one.

        Raises:
            UserError: a file of the run is missing, or differs from its record.
        """
        if self.store.published:
            return None
        folder = self.store.folder(run_id).resolve()
        checked = check(folder, run_id)
        if checked.faults:
            raise UserError(checked.faults[0])
        sha256 = checked.digests.get(FILE)
        self.found[run_id] = Module(run_id, folder / FILE, sha256) if sha256 else None
        return self.found[run_id]


def _origins(store: Store) -> tuple[dict[str, str | None], dict[str, str]]:
    """Each run's origin, and what is wrong with the runs that cannot be sent."""
    origins: dict[str, str | None] = {}
    faults = {}
    for run_id, record, fault in store.entries():
        if record is None or fault:
            faults[run_id] = str(fault)
        else:
            origins[run_id] = (record.get("spec") or {}).get("origin")
    return origins, faults


def _depth(run_id: str, origins: Mapping[str, str | None]) -> int:
    """How many origins stand behind a run."""
    chain = [run_id]
    while (before := origins.get(chain[-1])) in origins and before not in chain:
        chain.append(str(before))
    return len(chain) - 1


def _sweeps(store: Store, origins: Sequence[tuple[str, str | None]]) -> dict[str, dict[str, None]]:
    """Run id -> sweeps whose cells name it, and those of the runs that start from it; `origins` lists these runs first."""
    found: dict[str, dict[str, None]] = {}
    for manifest in store.manifests():
        if sweep := manifest.get("sweep"):
            for run_id in {cell[key] for cell in manifest["cells"] for key in ("run_id", "native_id", "bare_id")}:
                found.setdefault(run_id, {})[sweep] = None
    for run_id, origin in origins:
        if origin and run_id in found:
            found[origin] = found.get(origin, {}) | found[run_id]
    return found


def comparisons(cells: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Run id -> what its summary says of it beside others, as fractions: zero_shot_lift over the bare host, and gain_over_X
    for each other init X, paired by seed, at the run's largest budget."""
    found: dict[str, dict[str, float]] = {}
    lifts = cells[(cells["budget"] == 0) & cells["lift"].notna()]
    for run_id, lift in zip(lifts["run_id"], lifts["lift"], strict=True):
        found.setdefault(run_id, {})["zero_shot_lift"] = float(lift)
    for baseline in _baselines(cells):
        gains = _gains(cells, baseline)
        last = gains.sort_values("budget").drop_duplicates("run_id", keep="last")
        for run_id, gain in zip(last["run_id"], last["gain"], strict=True):
            found.setdefault(run_id, {})[f"gain_over_{baseline}"] = float(gain)
    return found


def _baselines(cells: pd.DataFrame) -> list[str]:
    """The inits over which the study's arm may have a gain."""
    return [str(init) for init in cells["init"].unique() if init not in (arm_of(cells), BARE)]


def _gains(cells: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Every pair's gain (a fraction) with the coordinates and run of the study's arm; zero-shot is no pair's."""
    pairs = paired(cells, arm_of(cells), baseline, scale=1.0)
    pairs = pairs[pairs["value"].notna() & (pairs["budget"] > 0)]
    own = cells[[*COORDINATES, "run_id"]]
    return pairs[[*COORDINATES, "value"]].rename(columns={"value": "gain"}).merge(own, on=COORDINATES, how="left")


def study_entry(store: Store, cells: pd.DataFrame) -> Entry:
    """The study as a run of its own, replaced whole when it grows: a table of cells and one of gains by pair."""
    keys = ["method", "origin", "receiving", "relation", "data", "port", "budget", "baseline"]
    parts = [_gains(cells, baseline).assign(baseline=baseline) for baseline in _baselines(cells)]
    pairs = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*keys, "gain"])
    gains = pairs.groupby(keys, sort=True)["gain"].agg(["mean", "count"]).reset_index()
    name = store.root.resolve().name
    counts = {f"cells_{status}": int(number) for status, number in cells["status"].value_counts().items()}
    tables = {"cells": _table(cells[CELLS]), "gains": _table(gains.rename(columns={"mean": "gain", "count": "pairs"}))}
    how = {"group": "study", "job_type": "study", "name": f"{name}: cells and gains", "tags": ["study"]}
    return Entry("study", "study", how, {"study": name, "cells": len(cells)}, (), counts, tables)


def _table(frame: pd.DataFrame) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows for a W&B table, None where there is no number."""
    plain = frame.astype(object).where(frame.notna(), None)
    return list(plain.columns), plain.to_numpy().tolist()


if __name__ == "__main__":
    sys.exit(main())
