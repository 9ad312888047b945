"""What the command `port` says of two hosts before any work."""

from collections.abc import Callable
from pathlib import Path
from statistics import median

from portability.core.errors import UserError
from portability.core.specs import HostSpec
from portability.hosts.host import Host, load_tokenizer
from portability.hosts.sources import quantisation, read_config, texts_of
from portability.methods.folder import AdapterFolder
from portability.porting.basis import basis
from portability.porting.calibration import Calibration
from portability.porting.layer_similarity import matched_layers
from portability.porting.settings import stack_map
from portability.porting.strategies.auto import choice

STUDIES = {  # whether two hosts write in the same coordinates -> what docs/results says of such pairs
    True: "ported modules led those from scratch far, and no other strategy led copying",
    False: "copying carried nothing, or did harm; maps carried a task to the same function in another basis, "
           "and little between hosts trained apart, where distill did (docs/results/strategies.md)",
}


def left_behind(adapter: AdapterFolder) -> list[str]:
    """What stands in a folder beside the module and is not carried: a head, which adapters saves there."""
    head = adapter.folder / "head_config.json"
    return [f"{head.name}: the prediction head beside the module is left behind"] if head.is_file() else []


def verdict(adapter: AdapterFolder, origin: HostSpec, receiving: HostSpec, named: str | None) -> list[str]:
    """What can be said before any work, from configurations and tokenizers alone."""
    one, other = origin.shape, receiving.shape
    lines = [f"adapter: {adapter.spec.config} of {adapter.base or 'an unnamed base'}",
             f"from {_shape(origin)}", f"to   {_shape(receiving)}"]
    if named and adapter.base and Path(adapter.base).name != Path(named).name:
        lines.append(f"warning: the adapter says that its base is {adapter.base}, and --from names {named}")
    if one.family != other.family:
        lines.append(f"warning: the families differ ({one.family}, {other.family}); only sites of the same "
                     "role are carried")
    if one.hidden != other.hidden:
        lines.append(f"warning: the widths differ ({one.hidden}, {other.hidden})")
    if packed := quantisation(read_config(texts_of(receiving) / "config.json")):
        lines.append(f"warning: {receiving.name} is quantised ({packed}): the adapter is fitted to its "
                     "shapes, and none of its weights is read")
    shared = vocabulary_overlap(origin, receiving)
    if shared is None:
        lines.append("tokenizers: not compared (one of them is not there)")
    else:
        lines.append(f"tokenizers: {shared:.1%} of the receiving vocabulary has the same number in both"
                     + ("" if shared > 0.99 else "; a module reads other tokens than it was trained on"))
    return lines


def outlook(origin: HostSpec, receiving: HostSpec, strategy: str, texts: bool) -> list[str]:
    """How the hosts' coordinates lie to each other, and what `auto` makes of it."""
    found = basis(origin, receiving)
    lines = ["coordinates: "
             f"{found.words if found else 'not compared (an embedding or tokenizer is not there)'}"]
    if found:
        lines.append(f"studies of such pairs: {STUDIES[found.inherited]}")
    if strategy == "auto":
        picked = choice(origin, receiving, found, texts)
        lines.append(f"strategy: {picked.strategy}, because {picked.why}")
    return lines


def layers_line(origin: HostSpec, receiving: HostSpec, load: Callable[[HostSpec], Host],
                texts: Calibration) -> str:
    """How alike the layers are of hosts that are read side by side, by CKA with the unbiased HSIC (D-67)."""
    stacks = [(source, stack) for stack, source in stack_map(origin.shape, receiving.shape).items()
              if stack != "shared"]
    try:
        found = [one for pair in stacks
                 for one in matched_layers((load(origin), load(receiving)), pair, texts)]
    except UserError as error:
        return f"layers: not compared ({error})"
    if not found:
        return "layers: not compared (the hosts have no stack in common)"
    return (f"layers: CKA of what {len(found)} matched ones make of the texts: lowest {min(found):.2f}, "
            f"median {median(found):.2f} (1: the same but for rotation and scale)")


def _shape(host: HostSpec) -> str:
    shape = host.shape
    layers = "+".join(str(count) for count in shape.layers.values())
    return (f"{host.name}: {shape.family}, {layers} layers, width {shape.hidden}, feed-forward {shape.ffn}, "
            f"{shape.heads} heads ({shape.kv_heads} for keys and values) of {shape.head_dim}")


def vocabulary_overlap(origin: HostSpec, receiving: HostSpec) -> float | None:
    """Share of the receiving tokens that have the same number in both vocabularies, in [0, 1]; None where a
    tokenizer is not there."""
    try:
        one, other = (load_tokenizer(spec).get_vocab() for spec in (origin, receiving))
    except UserError:
        return None
    return sum(one.get(token) == number for token, number in other.items()) / max(1, len(other))
