"""The command `portability publish results/ --to wandb`: files every study's runs in W&B, each
once.

Runs are filed as `tracking` does while a study runs, with what only the whole study can say: how a run
compares with its scratch twin, its module as an artifact, and the module that it started from. What was filed
is remembered, so a repeated call sends only what is new.
"""

import json
import logging
import os
import sys
from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from portability.analysis.load import read
from portability.analysis.stats.pairing import COORDINATES, arm_of, paired
from portability.core.command_line import carry_out
from portability.core.errors import UserError, redact_paths
from portability.core.specs import BARE
from portability.options import parser
from portability.store import Store, studies
from portability.store.atomic import write_json
from portability.tracking.runs import Entry, Module, Tracker, TrackingSpec, entry_of, has_key, resolve_mode

log = logging.getLogger(__name__)
IN_A_ROW = 5  # refusals by W&B before a study is given up (our choice): each may take 20 s
STUDY = "study"  # the run that holds a study's tables
CELLS = [*COORDINATES, "run_id", "mark", "status", "value", "bare", "native", "lift"]
VERSION = 2  # raise it when the panels change: the workspace is then saved as a new view
NAME = "Porting: comparisons"
COLUMNS = [*(f"config:{name}.value" for name in ("method", "init", "pair", "relation", "seed")), *(
    f"summary:{name}" for name in (
        "eval_accuracy", "zero_shot_lift", "gain_over_scratch", "gain_over_sampled", "seconds"))]
MOST = 1000  # runs a panel shows (our choice: W&B's ten would be means of ten arbitrary runs)


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
        spec = TrackingSpec(mode, options.project or f"portability-{root.name}", root)
        count = publish(store, spec)
        failed |= bool(count["failed"])
        where = f"W&B project {spec.project}" if mode == "online" else f"{store.root / 'wandb'} (offline)"
        sys.stdout.write(f"{store.root}: {count['sent']:,} sent to {where}, {count['known']:,} were there "
                         f"already, {count['failed']:,} failed\n")
        if mode == "offline" and count["sent"]:
            sys.stdout.write("To send it: this command with --mode online (origins first), or, in any order, "
                             f"wandb sync {store.root}/wandb/offline-run-*\n")
        if options.dashboard:
            sys.stdout.write(f"Dashboard: {save(spec.project, Tracker(spec).place('online'), root)}\n")
    return int(failed)


def publish(store: Store, spec: TrackingSpec) -> Counter[str]:
    """File a study's runs, origins before what starts from them, and last a run with the tables of all cells
    and gains; gives back how many were sent, known or failed.

    A run that is broken, or that W&B refuses, is named and left out; the others go on.

    Raises:
        UserError: no study there; or W&B refused so many runs in a row that the others would fare no better.
    """
    count, tracker, refused = Counter[str](), Tracker(spec), 0
    for run_id, make in tqdm(list(entries(store)), desc=spec.folder.name, unit="run", disable=None):
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
        return entry_of(record, sweeps[run_id], numbers.get(run_id), modules[run_id], origin)

    yield from ((run_id, partial(entry, run_id)) for run_id in (*faults, *order))
    yield STUDY, lambda: study_entry(store, cells)


def _module(store: Store, run_id: str) -> Module | None:
    """A run's module, its files checked; None where it has none, as in a published copy."""
    if store.published:
        return None
    checked = store.inspect(run_id)
    if checked.faults:
        raise UserError(checked.faults[0])
    sha256 = checked.digests.get("module.safetensors")
    return Module(run_id, store.folder(run_id).resolve() / "module.safetensors", sha256) if sha256 else None


def comparisons(cells: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Run id -> its numbers beside other runs, as fractions: zero_shot_lift over the bare host, and
    gain_over_X for each other init X, paired by seed, at the run's largest budget."""
    lifts = cells[(cells["budget"] == 0) & cells["lift"].notna()]
    columns = {"zero_shot_lift": lifts.drop_duplicates("run_id", keep="last").set_index("run_id")["lift"]}
    for baseline in _baselines(cells):
        last = _gains(cells, baseline).sort_values("budget").drop_duplicates("run_id", keep="last")
        columns[f"gain_over_{baseline}"] = last.set_index("run_id")["gain"]
    return {str(run_id): row.dropna().to_dict() for run_id, row in pd.DataFrame(columns).iterrows()}


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


# ---- the dashboard


def workspace(entity: str, project: str) -> Any:
    """The workspace with its panels: accuracy against updates by init, gain by pair, zero-shot, cost, and
    tables.

    Means and bands are W&B's own, over the runs of a group, whatever differs between them; for inference see
    the report. Runs are listed by method and init, the study's own run (its tables) is left out of the panels
    by having none of their metrics.

    Raises:
        UserError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise UserError("a dashboard needs: pip install 'peft-portability[dashboard]'") from error
    runs = ws.RunsetSettings(groupby=[ws.Config("method"), ws.Config("init")], pinned_columns=COLUMNS,
                             order=[ws.Ordering(ws.Summary("eval_accuracy"), ascending=False)])
    sections = [ws.Section(name=name, panels=panels, is_open=True) for name, panels in _panels(wr).items()]
    return ws.Workspace(entity=entity, project=project, name=NAME, sections=sections, runset_settings=runs,
                        settings=ws.WorkspaceSettings(max_runs=MOST))


def _panels(wr: Any) -> dict[str, list[Any]]:
    """Section -> panels; `wr` is wandb_workspaces.reports.v2."""
    means = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stddev", "max_runs_to_show": MOST}

    def line(title: str, metric: str, by: str) -> Any:
        return wr.LinePlot(
            x="Step", y=[metric], title_x="updates", **means, title=title, groupby=wr.Config(by))

    def bars(title: str, metric: str, by: str) -> Any:
        return wr.BarPlot(
            title=title, metrics=[metric], groupby=wr.Config(by), max_bars_to_show=MOST, **means)

    def scatter(title: str, metric: str, **how: Any) -> Any:
        accuracy = wr.SummaryMetric("eval_accuracy")
        return wr.ScatterPlot(title=title, x=wr.SummaryMetric(metric), y=accuracy, **how)

    return {
        "Accuracy against updates": [
            line("Accuracy, by init", "eval_accuracy", "init"),
            line("Test loss, by init", "eval_loss", "init"),
            line("Accuracy, by method", "eval_accuracy", "method"),
        ],
        "Gain by pair": [
            bars("Gain over scratch, by origin -> receiving", "gain_over_scratch", "pair"),
            bars("Gain over sampled, by origin -> receiving", "gain_over_sampled", "pair"),
            bars("Gain over scratch, by method", "gain_over_scratch", "method"),
        ],
        "Zero-shot": [
            bars("Lift over the bare host, by pair", "zero_shot_lift", "pair"),
            bars("Lift over the bare host, by method", "zero_shot_lift", "method"),
            bars("Accuracy before any update, by init", "zero_shot_accuracy", "init"),
        ],
        "Cost": [
            scatter("Accuracy against trainable parameters", "trainable_params", log_x=True),
            scatter("Accuracy against seconds", "seconds"),
        ],
        "Runs": [
            *(wr.WeavePanelSummaryTable(table_name=name, layout=wr.Layout(w=24, h=12))
              for name in ("cells", "gains")),
            wr.RunComparer(diff_only="split"),
        ],
    }


def save(project: str, place: str, folder: Path) -> str:
    """Save the workspace in a project, unless this version of it was saved there; gives back its address.

    Args:
        place: where in W&B, see `Tracker.place`.
        folder: the study's, whose `wandb/sent/dashboard.json` remembers.

    Raises:
        UserError: wandb-workspaces is not installed, or W&B did not take it.
    """
    path = folder / "wandb" / "sent" / "dashboard.json"
    saved = json.loads(path.read_bytes()) if path.exists() else {}
    if saved.get(place, {}).get("version") == VERSION:
        return saved[place]["url"]
    import wandb

    try:
        made = workspace(os.environ.get("WANDB_ENTITY") or wandb.Api().default_entity or "", project)
        made.save()
        url = made.url
    except UserError:  # wandb-workspaces is missing
        raise
    except Exception as error:  # whatever W&B may raise
        raise UserError(f"W&B did not take the dashboard of {project} ({error})") from error
    write_json(path, {**saved, place: {"version": VERSION, "url": url}})
    return url


if __name__ == "__main__":
    sys.exit(main())
