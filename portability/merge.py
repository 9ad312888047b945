"""The command `portability merge STUDY RUN --out DIR`: a host with a run's LoRA in its weights, as a
plain host folder.

The folder is what transformers loads, or what a file of conf/host names; a classification head is no part of
it.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from portability.core.command_line import carry_out
from portability.core.errors import UserError
from portability.export import host_of, run_of
from portability.hosts.host import load_host, quiet
from portability.methods import merge_lora
from portability.methods.module import ModuleState
from portability.options import parser
from portability.store import Store
from portability.store.atomic import replacing_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Merge one run; gives back the exit code."""
    return carry_out(parser("merge"), work, arguments)


def work(options: Namespace) -> None:
    """Merge one run.

    Raises:
        UserError: as `merge`.
    """
    merge(Store(options.study), options.run, options.out, options.host)
    sys.stdout.write(f"written: {options.out}\n")


def merge(store: Store, run_id: str, folder: Path, host_folder: Path | None = None) -> None:
    """Write the host of a run with its LoRA merged, all in fp32.

    Args:
        folder: must not exist.
        host_folder: where the run's host is, unless the record's source says so (records hold no paths).

    Raises:
        UserError: no such run, no LoRA of library portability, another host, or tied weights that would part.
    """
    run = run_of(store, run_id)
    if run.method is None or run.method.library != "portability":
        raise UserError(f"run {run_id} has no LoRA of library portability, and no other can be merged")
    if folder.exists():
        raise UserError(f"{folder} is there already; name a new folder (--out)")
    found = host_of(run, host_folder)
    module = ModuleState.from_file(*store.tensors(run_id, "module"))
    has_start = (store.folder(run_id) / "start.safetensors").exists()
    start = ModuleState.from_file(*store.tensors(run_id, "start")) if has_start else None
    host = load_host(found)
    merge_lora.merge(host, run.method, module, start)
    with replacing_folder(folder) as draft, quiet():
        host.model.save_pretrained(draft, safe_serialization=True)
        host.tokenizer.save_pretrained(draft)


if __name__ == "__main__":
    sys.exit(main())
