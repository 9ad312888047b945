"""The command `python -m portability.merge STUDY RUN FOLDER`: a host with a run's LoRA in its weights, as a plain host folder.

    W + s (B A - B0 A0)     with the run's module (A, B), and what was taken off the host all through it (A0, B0), if anything

Source: the reference code of Zhong et al. (ICLR 2024), merge_lora.py. The folder is what transformers loads, or what a file
of conf/host names; a classification head is no part of it.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from portability.core.architectures import Slot
from portability.core.errors import UserError
from portability.core.specs import SCHEMA, HostSpec, RunSpec, from_dict
from portability.hosts.host import Host, HostSource, describe, load_plain, load_tokenizer
from portability.methods.module import ModuleState
from portability.methods.subtractive_lora import Lora, LoraSettings, lora_settings
from portability.store import Store


def main(arguments: Sequence[str] | None = None) -> int:
    """Merge one run; 0 when the folder was written, 2 when the user must change something."""
    parser = argparse.ArgumentParser(prog="python -m portability.merge", description=__doc__.splitlines()[0])
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
        raise UserError(f"run {run_id} is of an older protocol (schema {record.get('schema')}), which is read but not merged; "
                        "train it again")
    run = from_dict(RunSpec, record["spec"])
    if run.method is None or run.method.library != "portability":
        raise UserError(f"run {run_id} has no LoRA of library portability (method=lora_all), and no other can be merged here")
    if folder.exists():
        raise UserError(f"{folder} is there already; name a new folder")
    module, start = _module(store, run_id, "module"), _module(store, run_id, "start") if _has_start(store, run_id) else None
    spec = _host(run, host_folder)
    host = Host(spec, load_plain(spec), load_tokenizer(spec))
    add(host, lora_settings(run.method.settings, run.method.name), run.method.name, module, start)
    host.model.save_pretrained(folder, safe_serialization=True)
    host.tokenizer.save_pretrained(folder)


def add(host: Host, settings: LoraSettings, method: str, module: ModuleState, start: ModuleState | None) -> None:
    """Change a plainly loaded host's weights, in place, by what a module adds to them.

    Args:
        start: what is taken off: pairs (roles "A" and "B"), or blocks (role "D"), or None.

    Raises:
        UserError: head and embedding are one matrix that would have to part, on a host whose scale depends on the tie.
    """
    lora = Lora(host, settings, method)
    lora.unmount()
    _part_tied(host, lora)
    for name, (_, (slot, _, _)) in lora.trained.items():
        if slot.role == "A":
            change = _product(module, slot)
            if start is not None:
                block = start.tensors.get(slot._replace(role="D"))
                change = change - (_product(start, slot) if block is None else block.reshape(change.shape))
            layer, _, site = name.removesuffix(".A").partition(".loras.")
            order = lora.order[layer]
            _change(host.model.get_submodule(layer), order.index(site), len(order), settings.scale * change)


@torch.no_grad()
def _change(layer: torch.nn.Module, place: int, parts: int, change: Tensor) -> None:
    """Add (out, in) to one of the equal parts of a layer's output."""
    from transformers.pytorch_utils import Conv1D

    weight = layer.weight
    assert isinstance(weight, Tensor)
    if isinstance(layer, Conv1D | torch.nn.Embedding):  # (in, out), (vocabulary, hidden)
        weight = weight.T
    weight.chunk(parts, 0)[place].add_(change)


def _product(module: ModuleState, slot: Slot) -> Tensor:
    """B A of a pair, (out, in)."""
    pair_a, pair_b = (module.tensors[slot._replace(role=role)] for role in ("A", "B"))
    return pair_b.flatten(0, -2) @ pair_a.flatten(1)


def _part_tied(host: Host, lora: Lora) -> None:
    """Give the head a matrix of its own where it shares the embedding's and one of them changes."""
    head, embedding = host.model.get_output_embeddings(), host.model.get_input_embeddings()
    changed = {slot.site for _, (slot, _, _) in lora.trained.values()} & {"embedding", "head"}
    if head is None or head.weight is not embedding.weight or not changed:
        return
    if host.family == "t5":
        raise UserError(f"host '{host.spec.name}' ties its head to its embedding and scales it by that, so pairs beside "
                        "them cannot be merged; train with method.NAME.settings.sites=[attention,ffn]")
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    host.model.config.tie_word_embeddings = False


def _module(store: Store, run_id: str, name: str) -> ModuleState:
    return ModuleState.from_file(*store.tensors(run_id, name))


def _has_start(store: Store, run_id: str) -> bool:
    return (store.folder(run_id) / "start.safetensors").exists()


def _host(run: RunSpec, folder: Path | None) -> HostSpec:
    """The run's host, where it is now.

    Raises:
        UserError: it is not there, or is another one than the run was made on.
    """
    if folder is None and run.host.revision is None and not run.host.source.startswith("embedded:"):
        raise UserError(f"run {run.run_id} was made on host '{run.host.name}' in a local folder; say where it is: "
                        "--host FOLDER")
    if folder is None:
        return run.host
    found = describe(HostSource(run.host.name, path=str(folder)))
    if found.fingerprint != run.host.fingerprint:
        raise UserError(f"{folder} is not the host '{run.host.name}' on which run {run.run_id} was made")
    return found


if __name__ == "__main__":
    sys.exit(main())
