"""What the command `port` says of two hosts before any work."""

from collections.abc import Callable
from pathlib import Path
from statistics import median

from portability.core.errors import UserError
from portability.core.specs import HostSpec
from portability.core.wording import duration
from portability.hosts.devices import free_memory
from portability.hosts.host import Host, load_tokenizer
from portability.hosts.sources import quantisation, read_config, texts_of
from portability.methods.folder import AdapterFolder
from portability.methods.module import ModuleState
from portability.porting.basis import Basis, basis
from portability.porting.calibration import Calibration
from portability.porting.layer_similarity import matched_layers
from portability.porting.settings import stack_map
from portability.porting.size import PortSize
from portability.porting.strategies.auto import choice, same_widths

STUDIES = {  # kind of pair -> what came out (docs/results/strategies.md); points are of AUC
    "the same coordinates and depth":
        "between a host and the same trained further, both ways, pad was 27 and 37 points ahead of the bare "
        "host before any update (tiny T5s), 4.6 on SmolLM2, where scratch was level after 20 updates; no map "
        "was ahead of pad",
    "the same coordinates, another depth":
        "pad was 8.8 points ahead of the bare host before any update on 20 of SmolLM2's 30 layers, healed, "
        "and 6.3 and 5.6 on MiniLM's 3 and 6; no map was ahead of pad",
    "other coordinates of one width":
        "in a hidden basis procrustes and embed brought SmolLM2's LoRA whole before any update (AUC 97.0; "
        "bare 90.6, pad 75.1), and 20 updates undid it (86 and 85; scratch 92); between tiny T5s trained "
        "apart no map carried anything before any update, and procrustes was 3.3 behind pad",
    "another width":
        "between tiny T5s of widths 64 and 96 no map carried the task before any update (AUC 46 to 50; bare "
        "48, pad 50), distill did (96); after 20 updates none was told apart from pad (procrustes 2.8 points "
        "ahead, embed 5.1 behind)",
}
GB = 10**9
LITTLE = 1e12  # operations: seconds, or at most minutes


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


def outlook(origin: HostSpec, receiving: HostSpec, strategy: str, texts: bool, say: Callable[[str], None],
            module: Callable[[], ModuleState] | None = None) -> str:
    """Say how the hosts' coordinates lie to each other, and what `auto` makes of it; gives back the strategy.

    Args:
        texts, module: as of `auto.choice`.
        say: is given each line, before what comes of it may be refused.

    Raises:
        UserError: a host's embeddings are not finite, or as `auto.choice`.
    """
    found = basis(origin, receiving)
    say(f"coordinates: {found.words if found else 'not compared (an embedding or tokenizer is not there)'}")
    if found and (kind := kind_of_pair(found, origin, receiving)):
        say(f"studies of such pairs: {STUDIES[kind]}")
    if strategy == "auto":
        picked = choice(origin, receiving, found, texts, module)
        say(f"strategy: {picked.strategy}, because {picked.why}")
        return picked.strategy
    return strategy


def kind_of_pair(found: Basis, origin: HostSpec, receiving: HostSpec) -> str | None:
    """The key of STUDIES; None where the coordinates are the same and widths within the layers are not, of
    which there is no study, and where too few tokens are shared to say."""
    if origin.shape.hidden != receiving.shape.hidden:
        return "another width"
    if found.identity is None:
        return None
    if not found.inherited:
        return "other coordinates of one width"
    if not same_widths(origin, receiving):
        return None
    alike = origin.shape.layers == receiving.shape.layers
    return "the same coordinates and depth" if alike else "the same coordinates, another depth"


def size_lines(size: PortSize) -> list[str]:
    """What a port takes; nothing of one that takes little (our choice)."""
    memory = size.weights + size.beside
    if memory < GB and sum(size.flops) < LITTLE:
        return []
    read = f"{size.tokens} tokens" + (f", {size.passes} times" if size.passes > 1 else "")
    lines = [f"size: about {memory / GB:.1f} GB of memory, {size.weights / GB:.1f} of them both hosts' "
             f"weights, and {duration(size.seconds)} on this machine; both hosts read {read}"]
    if (free := free_memory()) < memory:
        lines.append(f"warning: {free / GB:.1f} GB of memory are free")
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
