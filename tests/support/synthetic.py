"""A synthetic study in the store's real layout, whose every number follows from a run's coordinates."""

import itertools
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from portability.core.specs import SCHEMA, Cell, digest
from portability.store import Store

ROOT = Path(__file__).parents[2]
NANO = ROOT / "results/nano_full"  # a published study, with its predictions
SHARED = ("scratch", "pissa", "extracted_random")  # inits that look at none of the origin's data
FACTS = {
    "study": "synthetic", "sweep": "toy", "overlap": "drop",
    "data": [{"name": "sst2", "train": 67349, "eval": 872, "dropped": 0},
             {"name": "rt", "train": 2495, "eval": 500, "dropped": 5644}],
}


@dataclass
class Axes:
    """The axes of a synthetic grid."""

    methods: tuple[str, ...] = ("lora", "prefix")
    pairs: tuple[tuple[str, str], ...] = (("base", "large"), ("tuned", "large"), ("large", "base"))
    relations: tuple[str, ...] = ("same", "different")
    inits: tuple[str, ...] = ("ported", "sampled", "scratch")
    budgets: tuple[int, ...] = (0, 100, 500)
    seeds: tuple[int, ...] = (0, 1, 2)
    port: str = "pad"
    data: tuple[str, ...] = ("sst2",)
    # the origin's data in relation "different", where there is one receiving set; else the next one
    other: str = "rt"
    exclude: tuple[dict[str, Any], ...] = ()  # places whose cells are not asked for, as of grid.exclude


@dataclass
class Synthetic:
    """A store on disk, and the plain-Python truth a test may compare with."""

    store: Store
    axes: Axes
    cells: list[Cell]
    runs: dict[str, dict[int, float]] = field(default_factory=dict)  # run_id -> mark -> accuracy

    def path(self, run_id: str) -> Path:
        """The run's record."""
        return self.store.folder(run_id) / "record.json"

    def remove(self, run_id: str) -> None:
        """Make a run missing."""
        shutil.rmtree(self.store.folder(run_id))

    def pick(self, **coordinates: Any) -> list[Cell]:
        """The cells with these coordinates."""
        return [cell for cell in self.cells if all(getattr(cell, k) == v for k, v in coordinates.items())]

    def accuracy(self, cell: Cell) -> float:
        """The cell's accuracy, read from the record on disk."""
        marks = json.loads(self.path(cell.run_id).read_text())["train_info"]["metrics"]
        return next(mark["eval_accuracy"] for mark in marks if mark["updates"] == cell.mark)


def run_name(kind: str, *parts: Any) -> str:
    """A run id from what the run is: scratch runs have no origin and no port in theirs."""
    return digest([kind, *parts])


def accuracy(run_id: str, mark: int) -> float:
    """A number in [0.5, 0.95] that grows with the mark and differs between runs."""
    noise = int(run_id[:6], 16) / 0xFFFFFF
    return round(0.5 + 0.15 * noise + 0.3 * mark / (mark + 200), 4)


def record(run_id: str, marks: dict[int, float], schema: int = SCHEMA,
           transformers: str = "4.57.6") -> dict[str, Any]:
    """A record as a run leaves it."""
    metrics = [
        {"updates": mark, "eval_accuracy": value, "eval_accuracy_calibrated": value + 0.01,
         "eval_f1": value - 0.01,
         "eval_loss": 1 - value, "eval_invalid_rate": 0.0, "eval_positive_share": 0.5}
        for mark, value in marks.items()
    ]
    return {
        "schema": schema, "run_id": run_id, "spec": {}, "cell": {}, "port_info": None,
        "run_info": {"created_at": "2026-01-01T00:00:00", "total_time": 36.0, "git_commit": "abc",
                     "worktree_dirty": False},
        "train_info": {"status": "success", "train_time": 30.0, "metrics": metrics, "train_loss": [[1, 0.7]]},
        "meta_info": {"package_info": {"torch": "2.13.0", "transformers": transformers},
                      "system_info": {"device": "cpu"}},
    }


def write(store: Store, run_id: str, value: dict[str, Any]) -> None:
    """Put a record where the store keeps it."""
    folder = store.folder(run_id)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "record.json").write_text(json.dumps(value))


def grid(axes: Axes) -> list[Cell]:
    """The cells of a grid, with the sharing that the planner does."""
    cells = []
    points = itertools.product(
        axes.data, axes.methods, axes.pairs, axes.relations, axes.inits, axes.seeds, axes.budgets)
    following = dict(zip(axes.data, [*axes.data[1:], axes.data[0]],
                         strict=True)) if len(axes.data) > 1 else {}
    for data, method, (origin, receiving), relation, init, seed, budget in points:
        known = data if relation == "same" else following.get(data, axes.other)
        source, own = (origin, known, axes.port), (data,) if following else ()
        run_id = run_name("run", method, receiving, init, seed, *own, *(() if init in SHARED else source))
        native = run_name("run", method, receiving, "native", seed, *own)
        bare = run_name("bare", receiving, *own)
        cells.append(Cell(method, origin, receiving, relation, known, data, init, axes.port, seed, budget,
                          run_id, budget, native, bare))
    return [cell for cell in cells
            if not any(vars(cell).items() >= place.items() for place in axes.exclude)]


def build(root: Path, axes: Axes | None = None, facts: dict[str, Any] | None = None) -> Synthetic:
    """Write a whole study: manifest, and one record for every run."""
    axes = axes or Axes()
    study = Synthetic(Store(root), axes, grid(axes))
    study.store.expect(study.cells, facts or FACTS)
    for cell in study.cells:
        study.runs.setdefault(cell.run_id, {})[cell.mark] = accuracy(cell.run_id, cell.mark)
        study.runs.setdefault(cell.native_id, {0: 0.5, 500: accuracy(cell.native_id, 900)})
        study.runs.setdefault(cell.bare_id, {0: accuracy(cell.bare_id, 0)})
    for run_id, marks in study.runs.items():
        write(study.store, run_id, record(run_id, marks))
    return study
