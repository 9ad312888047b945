"""The command `portability export STUDY RUN`: a module of a study as a folder that its library loads (--out
DIR), or what the run answered to each test example (--answers FILE)."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from portability.analysis.answers import arms_of, write_answers
from portability.core.command_line import carry_out
from portability.core.errors import UnknownName, UserError, closest
from portability.core.paths import PORTABLE
from portability.core.specs import SCHEMA, HostSpec, RunSpec, from_dict
from portability.hosts.host import load_skeleton
from portability.hosts.sources import HostSource, describe
from portability.methods import attach
from portability.methods.module import ModuleState
from portability.options import parser
from portability.store import Store
from portability.store.atomic import replacing_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Export one run; gives back the exit code."""
    return carry_out(parser("export"), work, arguments)


def work(options: Namespace) -> None:
    """Export one run.

    Raises:
        UserError: there is no such run, or it cannot be written as was asked.
    """
    store = Store(options.study)
    run = run_of(store, options.run)
    if options.out is None and options.answers is None:
        raise UserError("say what to write: the module (--out DIR), or answers (--answers FILE.jsonl)")
    if options.out and options.out.exists():
        raise UserError(f"{options.out} is there already; name a new folder (--out)")
    if options.answers:
        arms = _arms(store, run) if options.arms else {run.init.name: run.run_id}
        count = write_answers(store, run, options.answers, arms, options.data)
        sys.stdout.write(f"written: {options.answers} ({count} examples; {', '.join(arms)})\n")
    if options.out:
        export(store, run, options.out, options.host)
        sys.stdout.write(f"written: {options.out}\n")


def run_of(store: Store, run_id: str) -> RunSpec:
    """A run of a study by its id.

    Raises:
        UserError: there is no such run, or it is of an older protocol.
    """
    record = store.read(run_id)
    if record is None:
        store.manifests()  # a folder that is no study says so
        ids = store.ids()
        close = next((one for one in ids if one.startswith(run_id)), "") or closest(run_id, ids)
        raise UnknownName(f"no run {run_id} in {store.root}; give a run id from the study's tables or report"
                          + (f"; did you mean '{close}'?" if close else ""), run_id, close)
    if record.get("schema") != SCHEMA:
        raise UserError(f"run {run_id} is of an older protocol (schema {record.get('schema')}); train it "
                        "again")
    run: RunSpec = from_dict(RunSpec, record["spec"])
    return run


def _arms(store: Store, run: RunSpec) -> dict[str, str]:
    """The runs beside a run; one that is not done is named and left out."""
    found = arms_of(store, run.run_id)
    for arm, run_id in found.items():
        if not store.has(run_id):
            sys.stderr.write(f"left out: {arm}, whose run {run_id} is not done\n")
    return {arm: run_id for arm, run_id in found.items() if store.has(run_id)}


def host_of(run: RunSpec, folder: Path | None) -> HostSpec:
    """The run's host, where it is now.

    Args:
        folder: where it is, unless the record's source says so (records hold no paths).

    Raises:
        UserError: it is not there, or is another one than the run was made on.
    """
    if folder is None and run.host.revision is None and not run.host.source.startswith(PORTABLE):
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
    with replacing_folder(out) as draft:
        draft.rmdir()
        attached.save(attached.to_parameters(module), draft, about)


if __name__ == "__main__":
    sys.exit(main())
