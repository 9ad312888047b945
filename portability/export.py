"""The command `portability export STUDY RUN --out DIR`: a module of a study as a folder that its library
loads."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from portability.core.errors import UserError
from portability.core.specs import SCHEMA, HostSpec, RunSpec, from_dict
from portability.hosts.host import load_skeleton
from portability.hosts.sources import HostSource, describe
from portability.methods import attach
from portability.methods.module import ModuleState
from portability.store import Store

EXAMPLES = """examples:
  portability export results/demo 3f2a9c0d1e4b5a67 --out my-lora
  portability export results/mine 3f2a9c0d1e4b5a67 --out my-lora --host ../my-host
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Export one run; 0 when it was written, 2 when the user must change something."""
    parser = argparse.ArgumentParser(
        prog="portability export", description=(__doc__ or "").replace("\n", " "), epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="a study's folder")
    parser.add_argument("run", help="run id, as the tables and the report name it")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder for the module")
    parser.add_argument("--host", type=Path, help="the run's host, where it is no embedded one and no hub id")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        store = Store(options.study)
        run = run_of(store, options.run)
        if options.out.exists():
            raise UserError(f"{options.out} is there already; name a new folder")
        export(store, run, options.out, options.host)
        sys.stdout.write(f"written: {options.out}\n")
    except (UserError, OSError) as error:
        sys.stderr.write(f"portability: {error}\n")
        return 2
    return 0


def run_of(store: Store, run_id: str) -> RunSpec:
    """A run of a study by its id.

    Raises:
        UserError: there is no such run, or it is of an older protocol.
    """
    record = store.read(run_id)
    if record is None:
        raise UserError(f"no run {run_id} in {store.root}; give a run id from the study's tables or report")
    if record.get("schema") != SCHEMA:
        raise UserError(f"run {run_id} is of an older protocol (schema {record.get('schema')}); train it "
                        "again")
    run: RunSpec = from_dict(RunSpec, record["spec"])
    return run


def host_of(run: RunSpec, folder: Path | None) -> HostSpec:
    """The run's host, where it is now.

    Args:
        folder: where it is, unless the record's source says so (records hold no paths).

    Raises:
        UserError: it is not there, or is another one than the run was made on.
    """
    if folder is None and run.host.revision is None and not run.host.source.startswith("embedded:"):
        raise UserError(f"run {run.run_id} was made on host '{run.host.name}' in a local folder; say where "
                        "it is: --host FOLDER")
    if folder is None:
        return run.host
    found = describe(HostSource(run.host.name, path=str(folder)))
    if found.fingerprint != run.host.fingerprint:
        raise UserError(f"{folder} is not the host '{run.host.name}' on which run {run.run_id} was made")
    return found


def export(store: Store, run: RunSpec, out: Path, host_folder: Path | None = None) -> None:
    """Write the run's module in its library's own form.

    Raises:
        UserError: the run has no module, subtracts its start, or its host is not there.
    """
    if run.method is None:
        raise UserError(f"run {run.run_id} is that of a bare host, which has no module")
    if (store.folder(run.run_id) / "start.safetensors").exists():
        raise UserError(f"run {run.run_id} subtracts its start from the host, which no library's folder "
                        "can say; write the whole host: portability merge")
    module, host = ModuleState.from_file(*store.tensors(run.run_id, "module")), host_of(run, host_folder)
    with torch.device("meta"):
        attached = attach(load_skeleton(host), run.method)
    about = {"base_model_name_or_path": host.source if host.revision else None, "revision": host.revision}
    attached.save(attached.to_parameters(module), out, about)
