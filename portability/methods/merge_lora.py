"""Our LoRA added to a host's weights, which is then a plain host that answers as host and module did.

    W + s (B A - B0 A0)     with the module (A, B), and what was taken off the host all through its run (A0,
    B0), if anything

Source: the reference code of Zhong et al. (ICLR 2024), merge_lora.py.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from portability.core.errors import UserError
from portability.core.specs import MethodSpec
from portability.hosts.host import Host
from portability.methods.module import ModuleState
from portability.methods.subtractive_lora import LoraBackend, SubtractiveLora


def merge(host: Host, method: MethodSpec, module: ModuleState, start: ModuleState | None) -> None:
    """Change a host's weights, in place, by what a module adds to them.

    Args:
        method: of library portability.
        start: what is taken off: pairs (roles "A" and "B"), or blocks (role "D"), or None.

    Raises:
        UserError: head and embedding are one matrix that would have to part, on a host whose scale depends on
            the tie.
    """
    lora = LoraBackend().attach(host, method)
    lora.detach()
    _part_tied(host, lora)
    held = lora.to_parameters(module) | (lora.to_frozen(start) if start is not None else {})
    for name, beside in lora.besides.items():
        layer, sites = host.model.get_submodule(name), [site for _, _, site in beside.places]
        for site in beside.loras:
            prefix = f"{name}.loras.{site}."
            pair = {key.removeprefix(prefix): value for key, value in held.items() if key.startswith(prefix)}
            _add(layer, sites.index(site), len(sites), lora.scale * _change(pair))


def _change(pair: Mapping[str, Tensor]) -> Tensor:
    """B A, less B0 A0 or the block D behind them: (out, in)."""
    change = pair["B"] @ pair["A"]
    if "B0" in pair:
        change = change - pair["B0"] @ pair["A0"]
    return change - pair["D"] if "D" in pair else change


@torch.no_grad()
def _add(layer: nn.Module, place: int, parts: int, change: Tensor) -> None:
    """Add (out, in) to one of the equal parts of a layer's output."""
    from transformers.pytorch_utils import Conv1D

    weight = layer.weight
    assert isinstance(weight, Tensor)
    if isinstance(layer, Conv1D | nn.Embedding):  # (in, out), (vocabulary, hidden)
        weight = weight.T
    weight.chunk(parts, 0)[place].add_(change)


def _part_tied(host: Host, lora: SubtractiveLora) -> None:
    """Give the head a matrix of its own where it shares the embedding's and one of them changes."""
    head, embedding = host.model.get_output_embeddings(), host.model.get_input_embeddings()
    changed = {site for beside in lora.besides.values() for site in beside.loras} & {"embedding", "head"}
    if head is None or head.weight is not embedding.weight or not changed:
        return
    if host.family == "t5":
        raise UserError(f"host '{host.spec.name}' ties its head to its embedding and scales it by that, so "
                        "pairs beside them cannot be merged; train with "
                        "method.NAME.settings.sites=[attention,ffn]")
    head.weight = nn.Parameter(head.weight.detach().clone())
    host.model.config.tie_word_embeddings = False
