"""The command `python -m portability.publish results/ --to wandb`: files every study's runs in W&B, each
once.

Runs are filed as `tracking` does while a study runs, with what only the whole study can say: how a run
compares with its scratch twin, its module as an artifact, and the module that it started from. What was filed
is remembered, so a repeated call sends only what is new.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from portability.analysis.load import read
from portability.analysis.stats.pairing import COORDINATES, arm_of, paired
from portability.core.errors import UserError, redact_paths
from portability.core.specs import BARE
from portability.store import Store, studies
from portability.tracking.runs import Entry, Module, Tracker, TrackingSpec, entry_of, has_key, resolve_mode

log = logging.getLogger(__name__)
TARGETS = ("wandb",)
IN_A_ROW = 5  # refusals by W&B before a study is given up (our choice): each may take 20 s
STUDY = "study"  # the run that holds a study's tables
CELLS = [*COORDINATES, "run_id", "mark", "status", "value", "bare", "native", "lift"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Publish every study below a folder; 0 when all is filed, 1 when some run is not, 2 when the user must
    change something."""
    parser = argparse.ArgumentParser(prog="python -m portability.publish", description=__doc__)
    parser.add_argument("results", type=Path, help="results folder, or one study's folder")
    parser.add_argument("--to", required=True, choices=TARGETS)
    parser.add_argument("--mode", default="auto", choices=("auto", "offline", "online"),
                        help="auto: $WANDB_MODE, else online if a key is found, else offline")
    parser.add_argument("--project", help="W&B project; by default portability-STUDY, as while a study runs")
    parser.add_argument("--dashboard", action="store_true",
                        help="save a workspace with the comparisons too (needs a key)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        return int(_publish_all(options))
    except (UserError, OSError) as error:
        sys.stderr.write(f"portability: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("portability: interrupted; what was sent is remembered, "
                         "repeat the command to go on\n")
        return 130


def _publish_all(options: argparse.Namespace) -> bool:
    """Publish each study; whether anything failed."""
    mode = resolve_mode(options.mode)
    if mode == "disabled":
        raise UserError("WANDB_MODE is disabled, so nothing would be sent; "
                        "give --mode offline or --mode online")
    if options.dashboard and (mode != "online" or not has_key()):
        raise UserError("a dashboard is kept by W&B alone, so it needs a key (wandb login) and mode online")
    failed = False
    for store in studies(options.results):
        project = options.project or f"portability-{store.root.resolve().name}"
        spec = TrackingSpec(mode, project, store.root.resolve())
        count = publish(store, spec)
        failed |= bool(count.failed)
        sys.stdout.write(f"{_summary(store, spec, count)}\n")
        if options.dashboard:
            from portability.tracking.workspace import save

            sys.stdout.write(f"Dashboard: {save(spec.project, Tracker(spec).place('online'), spec.folder)}\n")
    return failed


@dataclass
class Count:
    """Numbers of a study's runs: sent now, sent before, and not sent."""

    sent: int = 0
    known: int = 0
    failed: int = 0


def publish(store: Store, spec: TrackingSpec) -> Count:
    """File a study's runs, origins before what starts from them, and last a run with the tables of all cells
    and gains.

    A run that is broken, or that W&B refuses, is named and left out; the others go on.

    Raises:
        UserError: no study there; or W&B refused so many runs in a row that the others would fare no better.
    """
    count, tracker, refused, study = Count(), Tracker(spec), 0, Study(store)
    for run_id in tqdm(study.ids, desc=spec.folder.name, unit="run", disable=None):
        entry = None
        try:
            entry = study.entry(run_id)
            sent = tracker.send(entry)
        except Exception as error:  # of a broken record or module, or whatever W&B may raise
            why = _words(error)
            what = "W&B did not take it" if entry else "its record or module cannot be used"
            log.error("run %s: %s: %s", run_id, what, why)
            count.failed += 1
            refused += entry is not None
            if refused == IN_A_ROW:
                raise UserError(f"W&B did not take {refused} runs in a row of {store.root} ({why}); what was "
                                "sent is remembered, repeat the command when it is put right") from error
        else:
            refused = 0
            count.sent += sent
            count.known += not sent
    return count


def _words(error: Exception) -> str:
    text = f"it has no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
    return redact_paths(text)


def _summary(store: Store, spec: TrackingSpec, count: Count) -> str:
    folder = store.root / "wandb"
    where = f"W&B project {spec.project}" if spec.mode == "online" else f"{folder} (offline)"
    line = (f"{store.root}: {count.sent:,} sent to {where}, {count.known:,} were there already, "
            f"{count.failed:,} failed")
    if spec.mode == "offline" and count.sent:
        line += ("\nTo send it: this command with --mode online (origins first), or, in any order, "
                 f"wandb sync {folder}/offline-run-*")
    return line


class Study:
    """A study's runs as W&B is told of them.

    Attributes:
        ids: the runs, broken ones first, then origins before what starts from them, and last the study
            itself.
    """

    def __init__(self, store: Store):
        self.store = store
        self.cells = read(store, None).cells
        self._comparisons = comparisons(self.cells)
        self._modules: dict[str, Module | None] = {}
        self._faults: dict[str, str] = {}
        origins: dict[str, str | None] = {}
        for run_id, record, fault in store.entries():
            if record is None or fault:
                self._faults[run_id] = str(fault)
            else:
                origins[run_id] = (record.get("spec") or {}).get("origin")
        graph = {run_id: [origin] if origin in origins else [] for run_id, origin in origins.items()}
        order = list(TopologicalSorter(graph).static_order())
        self._sweeps = self._named()
        for run_id in reversed(order):  # a sweep needs the origins of its runs too
            if (origin := origins[run_id]) and run_id in self._sweeps:
                self._sweeps[origin] = self._sweeps.get(origin, {}) | self._sweeps[run_id]
        self.ids = [*self._faults, *order, STUDY]

    def _named(self) -> dict[str, dict[str, None]]:
        """Run id -> sweeps whose cells name it, in order."""
        found: dict[str, dict[str, None]] = {}
        for manifest in self.store.manifests():
            if sweep := manifest.get("sweep"):
                for cell in manifest["cells"]:
                    for key in ("run_id", "native_id", "bare_id"):
                        found.setdefault(cell[key], {})[sweep] = None
        return found

    def entry(self, run_id: str) -> Entry:
        """What W&B is told of a run. Where its origin's module is broken, it is sent without that.

        Raises:
            UserError: the run's record or a file of it is broken.
            LookupError, TypeError, AttributeError: the record lacks what W&B is told.
        """
        if run_id == STUDY:
            return study_entry(self.store, self.cells)
        if run_id in self._faults:
            raise UserError(self._faults[run_id])
        record: Any = self.store.read(run_id)
        module = self._modules[run_id] = self._module(run_id)
        origin = self._modules.get(record["spec"].get("origin"))
        return entry_of(record, self._sweeps.get(run_id, ()), self._comparisons.get(run_id), module, origin)

    def _module(self, run_id: str) -> Module | None:
        """A run's module, its files checked against its record; None where it has none, as in a published
        copy."""
        if self.store.published:
            return None
        checked = self.store.inspect(run_id)
        if checked.faults:
            raise UserError(checked.faults[0])
        sha256 = checked.digests.get("module.safetensors")
        path = self.store.folder(run_id).resolve() / "module.safetensors"
        return Module(run_id, path, sha256) if sha256 else None


def comparisons(cells: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Run id -> its numbers beside other runs, as fractions: zero_shot_lift over the bare host, and
    gain_over_X for each other init X, paired by seed, at the run's largest budget."""
    lifts = cells[(cells["budget"] == 0) & cells["lift"].notna()]
    columns = {"zero_shot_lift": lifts.set_index("run_id")["lift"]}
    for baseline in _baselines(cells):
        last = _gains(cells, baseline).sort_values("budget").drop_duplicates("run_id", keep="last")
        columns[f"gain_over_{baseline}"] = last.set_index("run_id")["gain"]
    found: dict[str, dict[str, float]] = {}
    for name, column in columns.items():
        for run_id, value in column.items():
            found.setdefault(str(run_id), {})[name] = float(value)
    return found


def _baselines(cells: pd.DataFrame) -> list[str]:
    """The inits over which the study's arm may have a gain."""
    return [str(init) for init in cells["init"].unique() if init not in (arm_of(cells), BARE)]


def _gains(cells: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Every pair's gain (a fraction) with the coordinates and run of the study's arm; zero-shot is no
    pair's."""
    pairs = paired(cells, arm_of(cells), baseline, scale=1.0)
    pairs = pairs[pairs["value"].notna() & (pairs["budget"] > 0)]
    gains = pairs[[*COORDINATES, "value"]].rename(columns={"value": "gain"})
    return gains.merge(cells[[*COORDINATES, "run_id"]], on=COORDINATES, how="left")


def study_entry(store: Store, cells: pd.DataFrame) -> Entry:
    """The study as a run of its own: a table of cells and one of gains by pair, sent anew when the study
    grows."""
    keys = ["method", "origin", "receiving", "relation", "data", "port", "budget", "baseline"]
    parts = [_gains(cells, baseline).assign(baseline=baseline) for baseline in _baselines(cells)]
    pairs = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*keys, "gain"])
    gains = pairs.groupby(keys, sort=True)["gain"].agg(gain="mean", pairs="count").reset_index()
    name = store.root.resolve().name
    counts = {f"cells_{status}": int(number) for status, number in cells["status"].value_counts().items()}
    how = {"group": STUDY, "job_type": STUDY, "name": f"{name}: cells and gains", "tags": [STUDY]}
    return Entry(STUDY, how, {"study": name, "cells": len(cells)}, summary=counts,
                 tables={"cells": _table(cells[CELLS]), "gains": _table(gains)})


def _table(frame: pd.DataFrame) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows for a W&B table, None where there is no number."""
    plain = frame.astype(object).where(frame.notna(), None)
    return list(plain.columns), plain.to_numpy().tolist()


if __name__ == "__main__":
    sys.exit(main())
