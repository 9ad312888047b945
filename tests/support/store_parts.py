"""Small real studies to damage: copies of the fixtures, and more runs of the same kind with other seeds."""

import shutil
from pathlib import Path

import numpy as np
import torch

from portability.core.specs import Cell, RunSpec, from_dict
from portability.store import Result, Store

FIXTURES = Path(__file__).parents[1] / "fixtures" / "records"


def study(kind: str, root: Path) -> Store:
    """A copy of the study that a run of this format left ("format1", "format2")."""
    shutil.copytree(FIXTURES / kind / "study", root)
    return Store(root)


def ported(store: Store) -> str:
    """Id of the fixture's ported run (of the adapter, where there are two)."""
    found = [record for record in store.records() if record["cell"]["init"] == "ported"
             and record["cell"]["seed"] == 0]
    return min(found, key=lambda record: record["cell"]["method"])["run_id"]


def grow(store: Store, seeds: range, shift: float = 0.0) -> list[str]:
    """Commit runs as the ported one of the fixture, with other seeds, each with a cell of its own; gives back
    their ids."""
    source = Store(FIXTURES / "format2" / "study")
    base = source.read(ported(source))
    ids, cells = [], []
    for seed in seeds:
        record = {key: value for key, value in base.items() if key not in ("format", "files", "digest")}
        record["spec"] = {**record["spec"], "seed": seed}
        record["run_id"] = from_dict(RunSpec, record["spec"]).run_id
        record["cell"] = {**record["cell"], "seed": seed}
        generator = np.random.default_rng(seed)
        tensors = {
            "module": {"a": torch.full((3,), seed + shift)},
            "predictions": {
                "updates": torch.tensor([0, 2]),
                "margin": torch.from_numpy(generator.normal(size=(2, 16))).float(),
                "invalid": torch.from_numpy(generator.random((2, 16)) < 0.1),
                "label": torch.ones(16, dtype=torch.int8)},
        }
        store.commit(record["run_id"], Result(record, tensors, {"module": {"axes": "{}"}},
                                              {"seconds": 0.1 + shift, "x": 1}))
        ids.append(record["run_id"])
        cells += [Cell("adapter", "nano-raw-base", "nano-tuned-base", "same", "nano_films", "nano_films",
                       "ported", "pad",
                       seed, mark, record["run_id"], mark, record["spec"]["origin"], record["run_id"])
                  for mark in (0, 2)]
    store.expect(cells, {"sweep": f"seeds {seeds}"})
    return ids


def broken(store: Store) -> list[str]:
    """Ids of the runs whose record is missing, does not parse, or was changed."""
    return [run_id for run_id, record, _ in store.entries() if record is None]


def flip(path: Path, at: int = -1) -> None:
    """Change one bit of a file and nothing else."""
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def change_a_digit(path: Path, key: str = "eval_loss") -> None:
    """Change one digit of a number in a record, which parses all the same."""
    text = path.read_text()
    start = text.index(f'"{key}": ') + len(key) + 4
    place = next(i for i in range(start, len(text)) if text[i].isdigit() and text[i] not in "09")
    path.write_text(text[:place] + str(int(text[place]) - 1) + text[place + 1 :])


def contents(root: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*"))
            if path.is_file()}
