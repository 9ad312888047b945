"""A published study: its records, cells and predictions as parquet files, without modules; read like any other."""

from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portability.core.errors import UserError
from portability.store.records import Parsed, parse

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

FOLDER = "published"
RUN, FAILURE = "run", "failure"  # kinds of rows in records.parquet


def records_schema() -> "pa.Schema":
    """records.parquet: a row per finished run (`attempt` 0) and per failed attempt; `record` is canonical JSON."""
    import pyarrow as pa

    return pa.schema({"run_id": pa.string(), "kind": pa.string(), "attempt": pa.int64(), "record": pa.string()})


def predictions_schema(answers: bool) -> "pa.Schema":
    """predictions.parquet: a row per run, mark and test example (numbered from 0); null where a run has no such column.

    Args:
        answers: whether some runs answer prompts; without, the file has no scores.
    """
    import pyarrow as pa

    score = {"score": pa.float32()} if answers else {}
    return pa.schema({"run_id": pa.string(), "updates": pa.int64(), "example": pa.int32(), "label": pa.int8(),
                      "margin": pa.float32(), "invalid": pa.bool_(), **score})


class Sorted:
    """A parquet file whose rows are sorted by run_id, read a row group at a time; the last one is kept at hand.

    Raises:
        UserError: the file cannot be read; of every method.
    """

    def __init__(self, path: Path, *schemas: "pa.Schema"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        try:
            self.file = pq.ParquetFile(path, page_checksum_verification=True)
            if not any(self.file.schema_arrow.equals(schema) for schema in schemas):
                raise pa.ArrowInvalid("it has other columns")
            groups = range(self.file.num_row_groups)
            self.last = [self.file.read_row_group(i, ["run_id"]).column(0)[-1].as_py() for i in groups]  # ids of last rows
        except (pa.ArrowException, OSError, ValueError, IndexError) as error:
            raise self._unreadable(error) from error
        self.at_hand: tuple[int, pa.Table, list[str]] | None = None

    def groups(self) -> Iterator["pa.Table"]:
        """All row groups."""
        for place in range(self.file.num_row_groups):
            yield self._group(place)[0]

    def of(self, run_id: str) -> "pa.Table":
        """The rows of one run; they may cross no row group."""
        place = bisect_left(self.last, run_id)
        if place == len(self.last):
            return self.file.schema_arrow.empty_table()
        table, ids = self._group(place)
        start = bisect_left(ids, run_id)
        stop = bisect_left(ids, run_id + "\0", lo=start)
        return table.slice(start, stop - start)

    def _group(self, place: int) -> tuple["pa.Table", list[str]]:
        import pyarrow as pa

        if self.at_hand is None or self.at_hand[0] != place:
            try:
                table = self.file.read_row_group(place)
            except (pa.ArrowException, OSError, ValueError) as error:
                raise self._unreadable(error) from error
            self.at_hand = (place, table, table.column("run_id").to_pylist())
        return self.at_hand[1:]

    def _unreadable(self, error: Exception) -> UserError:
        return UserError(f"{self.path} cannot be read ({error}); fetch the published study again")


class Published:
    """Reads the two files of a published study."""

    def __init__(self, root: Path):
        self.records = Sorted(root / FOLDER / "records.parquet", records_schema())
        self.predicted = Sorted(root / FOLDER / "predictions.parquet", *map(predictions_schema, (False, True)))

    def parsed(self, run_id: str) -> Parsed:
        """A run's record, or its fault."""
        texts = [row["record"] for row in self.records.of(run_id).to_pylist() if row["kind"] == RUN]
        return parse(texts[0], run_id) if texts else (None, None)

    def attempts(self, run_id: str) -> int:
        """Number of recorded failures of a run."""
        return self.records.of(run_id).column("kind").to_pylist().count(FAILURE)

    def rows(self, kind: str) -> Iterator[dict[str, Any]]:
        """Rows of one kind (RUN or FAILURE) in the order of ids."""
        for table in self.records.groups():
            yield from (row for row in table.to_pylist() if row["kind"] == kind)

    def predictions(self, run_id: str) -> dict[str, "np.ndarray"]:
        """Predictions as `Store.predictions` gives them, bit for bit.

        Raises:
            UserError: none are there for this run.
        """
        import numpy as np

        found = self.predicted.of(run_id)
        if not len(found):
            raise UserError(f"{self.predicted.path} has no predictions of run {run_id}")
        rows = {name: found.column(name).to_numpy() for name in found.column_names if not found.column(name).null_count}
        count = int(rows["example"].max()) + 1
        whole = {name: np.ascontiguousarray(values.reshape(-1, count)) for name, values in rows.items() if name != "run_id"}
        label = {"label": whole["label"][0].copy()} if "label" in whole else {}
        return {"updates": whole["updates"][:, 0].copy(),
                **{name: whole[name] for name in ("margin", "score", "invalid") if name in whole}, **label}
