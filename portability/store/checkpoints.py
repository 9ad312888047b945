"""What is kept of runs in training: one file a run, replaced whole, dropped when the run is done."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from portability.store.atomic import draft_of
from portability.store.records import Arrays

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


def save(root: Path, run_id: str, tensors: Arrays) -> None:
    """Write a run's checkpoint (see `Store.save_checkpoint`); not flushed to the disk: a lost one costs time only."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = path_of(root, run_id)
    draft = draft_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in tensors.items()}, draft)
        draft.rename(path)
    except SafetensorError as error:
        raise OSError(f"cannot write a checkpoint of run {run_id}: {error}") from error
    finally:
        draft.unlink(missing_ok=True)


def load(root: Path, run_id: str) -> dict[str, "torch.Tensor"] | None:
    """A run's checkpoint, or None where there is none that can be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path_of(root, run_id))
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        log.warning("checkpoint of run %s cannot be read (%s); it starts anew", run_id, error)
        return None


def drop(root: Path, run_id: str) -> None:
    """Remove a run's checkpoint and its drafts."""
    for path in (path_of(root, run_id), *(root / "checkpoints").glob(f".{run_id}.*")):
        path.unlink(missing_ok=True)


def path_of(root: Path, run_id: str) -> Path:
    """Where a run's checkpoint is."""
    return root / "checkpoints" / f"{run_id}.safetensors"
