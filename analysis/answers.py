"""Every test example with what the runs of a cell answered to it. Texts are read from where the data set is;
no store holds any."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from portability.analysis.records import predictions_of
from portability.core.architectures import FAMILIES
from portability.core.errors import UserError
from portability.core.paths import bundled
from portability.core.schema import build
from portability.core.specs import BARE, AnswerSpec, RunSpec, TaskSpec
from portability.data.examples import Example, Rows
from portability.data.sources import ANSWERS, DataSource, read_split
from portability.data.splits import limited, rows_digest
from portability.store import Store
from portability.store.atomic import replacing

Arms = Mapping[str, str]  # kind of start -> run id
AXES = ("method", "origin", "receiving", "relation", "origin_data", "data", "port", "seed")


def write_answers(store: Store, run: RunSpec, path: Path, arms: Arms, folder: Path | None = None) -> int:
    """Write a line of JSON for each test example: its number (from 0), the prompt as it is put to the host,
    the right answer, and for each arm its run and, by mark, what `predictions_of` has. A host cuts a prompt
    that is longer than its limit; here it is whole.

    Args:
        path: must not exist.
        arms: whose answers stand side by side.
        folder: where the data set is, where neither the record nor conf/data say so.

    Returns:
        The number of examples.

    Raises:
        UserError: the data set is not there, or not the one that was tested on; a run has no predictions.
    """
    if path.exists():
        raise UserError(f"{path} is there already; name a new file (--answers)")
    asked = [_asked(run, row) for row in rows_asked(run, folder)]
    found = {arm: _by_example(store, run_id, len(asked)) for arm, run_id in arms.items()}
    with replacing(path) as draft, draft.open("w") as file:
        for index, example in enumerate(asked):
            answers = {arm: {"run": arms[arm], "marks": marks[index]} for arm, marks in found.items()}
            file.write(json.dumps({"example": index, **example, "arms": answers}, ensure_ascii=False) + "\n")
    return len(asked)


def _by_example(store: Store, run_id: str, count: int) -> list[list[dict[str, Any]]]:
    """What a run answered at each of its marks, by example."""
    table = predictions_of(store, run_id)
    if (tested := table["example"].nunique()) != count:
        raise UserError(f"run {run_id} was tested on {tested} examples, and the data set has {count}")
    table = table.drop(columns="label", errors="ignore").sort_values(["example", "updates"])
    return [list(_marks(group.drop(columns="example"))) for _, group in table.groupby("example")]


def _marks(table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for row in table.to_dict("records"):
        yield {name: float(f"{value:.9g}") if isinstance(value, float) else value  # as fp32 has it
               for name, value in row.items()}


def _asked(run: RunSpec, row: Any) -> dict[str, Any]:
    """The prompt and its right answer, as they are put to the run's host."""
    if isinstance(row, Example):
        choices = {} if row.choices is None else {"choices": row.choices}
        return {"prompt": row.prompt, "answer": row.answer, **choices}
    assert not isinstance(run.task, AnswerSpec)
    text, label = row
    if FAMILIES[run.host.shape.family].scoring == "head":
        return {"prompt": text, "label": label}
    return {"prompt": run.task.asked(text), "label": label,
            "answer": run.task.label_words[label]}


# ---- the runs beside a run


def arms_of(store: Store, run_id: str) -> dict[str, str]:
    """The runs that differ from one in their start alone, its own among them, by start: those of the cells
    with its method, hosts, data, port and seed, and the bare host's.

    Raises:
        UserError: no cell reads the run, or it stands beside different runs in several places.
    """
    cells = pd.DataFrame([cell for manifest in store.manifests() for cell in manifest["cells"]])
    own = cells.loc[cells["run_id"] == run_id, [*AXES]].drop_duplicates()
    if own.empty:
        raise UserError(f"no cell of {store.root} reads run {run_id}, so no other stands beside it; leave "
                        "--arms out")
    sides = []
    for row in range(len(own)):
        same = cells.merge(own.iloc[[row]], on=[*AXES])
        bare = {BARE: same["bare_id"].iloc[0]}
        sides.append(bare | dict(zip(same["init"], same["run_id"], strict=True)))
    if any(side != sides[0] for side in sides):
        raise UserError(f"run {run_id} stands beside different runs in {len(sides)} places of the grid; name "
                        "one that starts from an origin, such as a ported one")
    return sides[0]


# ---- the data set behind a run


def rows_asked(run: RunSpec, folder: Path | None) -> Rows:
    """The examples that a run was tested on, in the order of its predictions.

    Args:
        folder: as of `write_answers`.

    Raises:
        UserError: they are not there, or are others.
    """
    source, split = _source(run, folder), run.eval.split
    try:
        found = limited(read_split(source, split), split, run.eval.limit)
    except UserError as error:
        raise UserError(f"{error} (or name its folder here: --data FOLDER)") from error
    if rows_digest(found) != run.data.eval_digest:
        raise UserError(f"the {split} split of data set '{run.data.name}' is not the one that run "
                        f"{run.run_id} was tested on; name the folder with its files as they were: "
                        "--data FOLDER")
    return found


def _source(run: RunSpec, folder: Path | None) -> DataSource:
    """Where a run's data set is: in `folder`, or where its record and conf/data say."""
    data = run.data
    path = bundled("conf") / "data" / f"{data.name}.yaml"
    entry = (yaml.safe_load(path.read_text()) or {}).get(data.name) or {} if path.is_file() else {}
    if folder is not None:
        entry |= {"path": str(folder), "hub": None, "revision": None}
    elif data.revision is not None:
        entry |= {"path": None, "hub": data.source, "revision": data.revision}
    elif data.source.startswith("embedded:"):
        entry |= {"path": data.source, "hub": None}
    elif not entry.get("path"):
        raise UserError(f"data set '{data.name}' of run {run.run_id} was in a local folder; name it: "
                        "--data FOLDER")
    entry["path"] = entry["path"] and entry["path"].replace("${data_root}", "data")
    if isinstance(run.task, TaskSpec):  # where the set's own file is not at hand
        entry |= {} if "pair_column" in entry or not run.task.pairs else {"pair_column": "text_pair"}
        words = run.task.label_words
        entry |= {} if "labels" in entry or len(words) == 2 else {"labels": [*words]}
    else:
        entry["answers"] = {key: value for key, value in vars(run.task).items() if key in (
            "scoring", "max_length", *ANSWERS[run.task.scoring])}
    return build(DataSource, {"name": data.name} | entry, f"data.{data.name}")
