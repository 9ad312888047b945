"""The command `python -m portability.merge STUDY RUN FOLDER`: a host with a run's LoRA in its weights, as a
plain host folder.

The folder is what transformers loads, or what a file of conf/host names; a classification head is no part of
it.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from portability.core.errors import UserError
from portability.core.paths import PORTABLE
from portability.core.specs import SCHEMA, RunSpec, from_dict
from portability.hosts.host import load_host, quiet
from portability.hosts.sources import HostSource, describe
from portability.methods import merge_lora
from portability.methods.module import ModuleState
from portability.store import Store


def main(arguments: Sequence[str] | None = None) -> int:
    """Merge one run; 0 when the folder was written, 2 when the user must change something."""
    parser = argparse.ArgumentParser(prog="python -m portability.merge", description=__doc__.split("\n\n")[0])
    parser.add_argument("study", type=Path, help="a study's folder")
    parser.add_argument("run", help="run id, as the tables and the report name it")
    parser.add_argument("folder", type=Path, help="a new folder for the host")
    parser.add_argument("--host", type=Path, help="the run's host, where it is no embedded one and no hub id")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        merge(Store(options.study), options.run, options.folder, options.host)
    except (UserError, OSError) as error:
        sys.stderr.write(f"portability: {error}\n")
        return 2
    sys.stdout.write(f"Written: {options.folder}\n")
    return 0


def merge(store: Store, run_id: str, folder: Path, host_folder: Path | None = None) -> None:
    """Write the host of a run with its LoRA merged, all in fp32.

    Args:
        folder: must not exist.
        host_folder: where the run's host is, unless the record's source says so (records hold no paths).

    Raises:
        UserError: no such run, no LoRA of library portability, another host, or tied weights that would part.
    """
    record = store.read(run_id)
    if record is None:
        raise UserError(f"no run {run_id} in {store.root}; give a run id from the study's tables or report")
    if record.get("schema") != SCHEMA:
        raise UserError(f"{run_id} is of an older protocol (schema {record.get('schema')}); train it again")
    run = from_dict(RunSpec, record["spec"])
    if run.method is None or run.method.library != "portability":
        raise UserError(f"run {run_id} has no LoRA of library portability, and no other can be merged")
    if folder.exists():
        raise UserError(f"{folder} is there already; name a new folder")
    if host_folder is None and run.host.revision is None and not run.host.source.startswith(PORTABLE):
        raise UserError(f"run {run_id} was made on a host in a local folder; say where it is: --host FOLDER")
    found = describe(HostSource(run.host.name, path=str(host_folder))) if host_folder else run.host
    if found.fingerprint != run.host.fingerprint:
        raise UserError(f"{host_folder} is not the host '{run.host.name}' on which run {run_id} was made")
    module = ModuleState.from_file(*store.tensors(run_id, "module"))
    has_start = (store.folder(run_id) / "start.safetensors").exists()
    start = ModuleState.from_file(*store.tensors(run_id, "start")) if has_start else None
    host = load_host(found)
    merge_lora.merge(host, run.method, module, start)
    with quiet():
        host.model.save_pretrained(folder, safe_serialization=True)
        host.tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    sys.exit(main())
