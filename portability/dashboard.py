"""A workspace in W&B that compares a study's runs: kept by W&B alone, so it needs a key."""

import json
import os
from pathlib import Path
from typing import Any

from portability.analysis.metrics import Metric
from portability.core.errors import UserError
from portability.store.atomic import write_json

VERSION = 4  # raise it when the panels change: the workspace is then saved as a new view
NAME = "Porting: comparisons"
CONFIG = ("method", "init", "pair", "relation", "seed")  # columns of the list of runs, before its numbers
GAINS = ("zero_shot_lift", "gain_over_scratch", "gain_over_sampled")
MOST = 1000  # runs a panel shows (our choice: W&B's ten would be means of ten arbitrary runs)


def workspace(entity: str, project: str, study: str, metric: Metric) -> Any:
    """The workspace of one study of a project, with its panels: verdict, heat map and forest (of the study's
    own run), the metric against updates by init, training, gain by pair, zero-shot, cost, and tables.

    Means and bands are W&B's own, over the runs of a group, whatever differs between them; for inference see
    the report. Runs are listed by method and init, the study's own run (its tables) is left out of the panels
    by having none of their metrics.

    Args:
        metric: the study's, in which its gains and lifts are.

    Raises:
        UserError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise UserError("a dashboard needs: pip install 'peft-portability[dashboard]'") from error
    runs = ws.RunsetSettings(
        filters=[ws.Config("study") == study], groupby=[ws.Config("method"), ws.Config("init")],
        pinned_columns=[*(f"config:{name}.value" for name in CONFIG),
                        *(f"summary:{name}" for name in (metric.name, *GAINS, "seconds"))],
        order=[ws.Ordering(ws.Summary(metric.name), ascending=metric.better == "lower")])
    sections = [ws.Section(name=name, panels=panels, is_open=True)
                for name, panels in _panels(wr, metric).items()]
    return ws.Workspace(entity=entity, project=project, name=f"{NAME}, {study}", sections=sections,
                        runset_settings=runs, settings=ws.WorkspaceSettings(max_runs=MOST))


def _panels(wr: Any, metric: Metric) -> dict[str, list[Any]]:
    """Section -> panels; `wr` is wandb_workspaces.reports.v2."""
    means = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stddev", "max_runs_to_show": MOST}

    def line(title: str, name: str, by: str) -> Any:
        return wr.LinePlot(
            x="Step", y=[name], title_x="updates", **means, title=title, groupby=wr.Config(by))

    def bars(title: str, name: str, by: str) -> Any:
        return wr.BarPlot(
            title=title, metrics=[name], groupby=wr.Config(by), max_bars_to_show=MOST, **means)

    def scatter(title: str, name: str, **how: Any) -> Any:
        return wr.ScatterPlot(
            title=title, x=wr.SummaryMetric(name), y=wr.SummaryMetric(metric.name), **how)

    return {
        "Verdict": [
            wr.MediaBrowser(title="Heat map, forest of contrasts, arms against updates", num_columns=1,
                            media_keys=["heat_map", "forest", "arms_by_updates"],
                            layout=wr.Layout(w=24, h=16)),
            wr.WeavePanelSummaryTable(table_name="contrasts", layout=wr.Layout(w=24, h=8)),
        ],
        f"{metric.title} against updates": [
            line(f"{metric.title}, by init", metric.name, "init"),
            line("Test loss, by init", "eval_loss", "init"),
            line(f"{metric.title}, by method", metric.name, "method"),
        ],
        "Training": [
            line("Training loss, by init", "train_loss", "init"),
            line("Learning rate, by method", "learning_rate", "method"),
            line("Tokens a second, by method", "tokens_per_second", "method"),
        ],
        "Gain by pair": [
            bars(f"Gain in {metric.label} over scratch, by origin -> receiving", "gain_over_scratch", "pair"),
            bars(f"Gain in {metric.label} over sampled, by origin -> receiving", "gain_over_sampled", "pair"),
            bars(f"Gain in {metric.label} over scratch, by method", "gain_over_scratch", "method"),
        ],
        "Zero-shot": [
            bars(f"Lift in {metric.label} over the bare host, by pair", "zero_shot_lift", "pair"),
            bars(f"Lift in {metric.label} over the bare host, by method", "zero_shot_lift", "method"),
            bars("Accuracy before any update, by init", "zero_shot_accuracy", "init"),
        ],
        "Cost": [
            scatter(f"{metric.title} against trainable parameters", "trainable_params", log_x=True),
            scatter(f"{metric.title} against seconds", "seconds"),
        ],
        "Runs": [
            *(wr.WeavePanelSummaryTable(table_name=name, layout=wr.Layout(w=24, h=12))
              for name in ("cells", "gains")),
            wr.RunComparer(diff_only="split"),
        ],
    }


def save(project: str, place: str, folder: Path, metric: Metric) -> str:
    """Save the workspace in a project, unless this version of it was saved there; gives back its address.

    Args:
        place: where in W&B, see `Tracker.place`.
        folder: the study's, whose `wandb/sent/dashboard.json` remembers.
        metric: as of `workspace`.

    Raises:
        UserError: wandb-workspaces is not installed, or W&B did not take it.
    """
    path = folder / "wandb" / "sent" / "dashboard.json"
    saved = json.loads(path.read_bytes()) if path.exists() else {}
    if saved.get(place, {}).get("version") == VERSION:
        return saved[place]["url"]
    import wandb

    try:
        entity = os.environ.get("WANDB_ENTITY") or wandb.Api().default_entity or ""
        made = workspace(entity, project, folder.name, metric)
        made.save()
        url = made.url
    except UserError:  # wandb-workspaces is missing
        raise
    except Exception as error:  # whatever W&B may raise
        raise UserError(f"W&B did not take the dashboard of {project} ({error})") from error
    write_json(path, {**saved, place: {"version": VERSION, "url": url}})
    return url
