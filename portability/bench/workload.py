"""What every contender is given: one host, one method, one set of token ids, one protocol, read from conf/."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from portability.core.paths import bundled
from portability.core.specs import MethodSpec, TaskSpec, TrainSpec
from portability.data.tokenization import Encoded


@dataclass(frozen=True)
class Workload:
    """A job for a child process; it travels as JSON.

    Attributes:
        kind: which part of the benchmark the child plays (contender.KINDS).
        folder: holds the host (``host/``) and token ids (train, test, and sentences all of the mean, of the largest length).
        modules: modules that one process trains at once.
        updates: optimiser updates that will be asked for at most.
        stacks: sizes of stack, for the parts that go through several.
        overrides: a study's words on the command line, for the parts that carry out a grid; `seeds`: how many of its seeds.
    """

    kind: str
    folder: str
    shape: str
    method: str
    batch_size: int
    precision: str  # fp32 | bf16
    device: str  # cpu | cuda
    modules: int = 1
    updates: int = 200
    first_seed: int = 0
    stacks: tuple[int, ...] = ()
    train_batches: int = 200
    test_examples: int = 320
    overrides: tuple[str, ...] = ()
    seeds: int = 1

    @property
    def path(self) -> Path:
        """The folder as a path."""
        return Path(self.folder)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Workload":
        """Back from JSON (lists become tuples again)."""
        return cls(**{key: tuple(item) if isinstance(item, list) else item for key, item in value.items()})


def _settings(*names: str) -> dict[str, Any]:
    return yaml.safe_load(bundled("conf").joinpath(*names).read_text())


def methods() -> list[str]:
    """Names of the methods in conf/method."""
    return sorted(path.stem for path in (bundled("conf") / "method").glob("*.yaml"))


def method_spec(name: str) -> MethodSpec:
    """A method with its settings, as a study would train it."""
    return MethodSpec(name=name, **_settings("method", f"{name}.yaml")[name])


def task_spec() -> TaskSpec:
    """Template, label words and length limit."""
    task = _settings("config.yaml")["task"]
    return TaskSpec(task["template"], tuple(task["label_words"]), task["max_length"])


def train_spec(work: Workload) -> TrainSpec:
    """The protocol of a study, with this workload's updates and batch size."""
    values = _settings("config.yaml")["train"]
    values["betas"] = tuple(values["betas"])
    values["eps"] = float(values["eps"])
    return replace(TrainSpec(updates=work.updates, **values), batch_size=work.batch_size)


def evaluation_batch() -> int:
    """Examples scored at once, for every contender."""
    return int(_settings("config.yaml")["eval"]["batch_size"])


def default_batch() -> int:
    """Examples of an update, as in a study."""
    return int(_settings("config.yaml")["train"]["batch_size"])


# ---- token ids on disk


def save_set(folder: Path, name: str, rows: list[list[int]], labels: list[int]) -> None:
    """Write token ids, one row an example."""
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    np.savez(folder / f"{name}.npz", ids=np.concatenate(rows).astype(np.int32), offsets=offsets,
             labels=np.array(labels, dtype=np.int64))


def load_set(folder: Path, name: str) -> Encoded:
    """The same token ids for everyone."""
    with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
        return Encoded(file["ids"], file["offsets"], file["labels"], 0)
