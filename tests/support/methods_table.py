"""The lines of docs/methods.md: what each file of conf/method can do, tried out on tiny random hosts.
support.reference writes them."""

import re
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import peft
import torch
import yaml

from portability import port_module
from portability.core.architectures import FAMILIES
from portability.core.errors import RUN_ERRORS, UserError
from portability.core.schema import build
from portability.core.specs import HostSpec, MethodSpec
from portability.hosts.host import Host, load_host
from portability.hosts.sources import HostSource, describe
from portability.methods import attach
from portability.methods.files import read_folder
from portability.methods.module import ModuleState
from portability.porting.calibration import calibration
from portability.porting.convert import to_lora
from portability.tasks.classification import Scorer
from portability.tasks.members import member_map
from support.tiny import CONF, TASK, model, noisy, sentences, tokenizer

DRAWN = 0  # seed of hosts and modules
WIDTHS = "between widths"
PROMPTS = "of virtual tokens, PROMPT_TUNING and flat PREFIX_TUNING alone are put before a text here"
NOT_YET = "attaches by a file of conf/method, but was tried on a Llama alone; no port between widths"
UNREAD = "parameters whose place is not read yet (a list, or a module of several, beside each layer)"
NOT_COVERED = {  # types of peft without a file in conf/method -> why
    "MULTITASK_PROMPT_TUNING": PROMPTS, "P_TUNING": PROMPTS, "CPT": PROMPTS, "CARTRIDGE": PROMPTS,
    "ADAPTION_PROMPT": "prompts inside the attention of Llama alone, with a class of its own around it",
    "ADAMSS": "needs scikit-learn beside peft, and chooses subspaces by clustering a host's weights",
    "POLY": "routes by a task number given with each batch, and a study has one task a run",
    "XLORA": "mixes several trained adapters by a router; it is no module by itself",
    "TRAINABLE_TOKENS": "rows of the host's own vocabulary, which mean nothing on another one",
    "OSF": "trains a part of the host's own weights, beside which there is no module",
    "SHIRA": "entries of the host's own weights at places drawn at random, which no other host has",
    "SHADOW": f"{UNREAD}; a second small network beside the host",
    "GLORA": UNREAD, "TINYLORA": UNREAD, "PSOFT": UNREAD,
    "ROAD": "rotates pairs of the host's own features; its group size must divide every width (64)",
    "WAVEFT": "entries of a transform as large as each matrix, at places drawn at random",
    "BEFT": NOT_YET, "LILY": NOT_YET, "FROD": NOT_YET, "PVERA": NOT_YET, "UNILORA": NOT_YET, "HIRA": NOT_YET,
    "DELORA": NOT_YET, "GRALORA": NOT_YET, "PEANUT": NOT_YET, "SUPERTUNING": NOT_YET, "DEFT": NOT_YET,
}
HEAD = """# Methods and families

Made by `PYTHONPATH=tests python -m support.reference methods.md` with
{versions}; a test compares the two. Each row was
tried out on tiny random hosts: nothing here is copied from a library's documents. How a method or a family is
added: [adding.md](adding.md).

## Methods

One row for each file of [conf/method](../conf/method), on a Llama of 2 layers.

- *trains*: its loss has a finite gradient that is not zero.
- *stacks*: modules of a study train many at once, by `vmap`; or one at a time by the same path, with the
  reason that `vmap` gives.
- *ports*: to a Llama twice as wide and deep, or only to one twice as deep; *by way of LoRA* means that
  `portability port --via lora` turns it into a LoRA on its own base first ([porting.md](porting.md)).
- *maps*: strategies that write a module in the other host's coordinates take it ([porting.md](porting.md)):
  all of them, or those alone that send units to units (`corr`, `rebasin`), because its numbers belong to one
  unit each.
- *folder*: `portability export` writes what the library loads.

| method | library | config | trains | stacks | ports | maps | folder |
|---|---|---|---|---|---|---|---|
"""
FAMILY_HEAD = """
## Families

One row for each row of `FAMILIES` in [architectures.py](../portability/core/architectures.py). A family is
scored by label words where it has a language-model head, else by a small head that is trained along.

| family | scored by | methods that it takes | refused, with the library's words |
|---|---|---|---|
"""
TYPE_HEAD = """
## Types of peft that are not here

| type | why |
|---|---|
"""


def methods() -> list[MethodSpec]:
    """The method of each file of conf/method."""
    files = sorted((CONF / "method").glob("*.yaml"))
    return [build(MethodSpec, {"name": name, **value}, name)
            for path in files for name, value in yaml.safe_load(path.read_text()).items()]


def covered() -> set[str]:
    """Types of peft that a file of conf/method names."""
    kinds = {config.__name__: kind.value for kind, config in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    return {kinds[method.config] for method in methods() if method.library == "peft"}


class Hosts:
    """Tiny hosts, each made once."""

    def __init__(self, folder: Path):
        self.folder, self.made = folder, dict[tuple[str, int, int, int], HostSpec]()

    def __call__(self, family: str, hidden: int, layers: int, heads: int) -> Host:
        key = family, hidden, layers, heads
        if key not in self.made:
            folder = self.folder / f"{family}-{hidden}x{layers}"
            torch.manual_seed(DRAWN)
            model(*key).save_pretrained(folder)
            tokenizer().save_pretrained(folder)
            self.made[key] = describe(HostSource(folder.name, path=str(folder)))
        return load_host(self.made[key])


def method_row(spec: MethodSpec, hosts: Hosts) -> str:
    """A method's line of the first table."""
    host = hosts("llama", 32, 2, 4)
    attached = attach(host, spec)
    module = noisy(attached, DRAWN)
    trains, stacks = _training(host, {f"model.{k}": v for k, v in attached.to_parameters(module).items()})
    folder = hosts.folder / f"module-{spec.name}"
    try:
        attached.save(attached.to_parameters(module), folder, {"base_model_name_or_path": host.spec.source})
        saved = "yes"
    except RUN_ERRORS as error:
        saved = f"no: {said(error)}"
    attached.detach()
    ports = _ports(spec, module, host.spec, hosts)
    if spec.library == "peft" and ports != WIDTHS:
        ports += _by_way_of_lora(folder, host.spec)
    maps = _maps(spec, module, host.spec, hosts)
    cells = (f"`{spec.name}`", spec.library, spec.config, trains, stacks, ports, maps, saved)
    return f"| {' | '.join(cells)} |"


def _training(host: Host, start: dict[str, torch.Tensor]) -> tuple[str, str]:
    """Whether a method trains, and how its members stack."""
    scorer = Scorer(host, TASK)
    ids = torch.randint(3, 20, (4, 7), generator=torch.Generator().manual_seed(DRAWN))
    rows = ids, torch.ones_like(ids), torch.tensor(scorer.label_ids * 2)
    each, reason = member_map(scorer, start, rows)
    two = {name: value.repeat(2, *[1] * value.ndim).requires_grad_() for name, value in start.items()}
    losses = each(scorer.loss, in_dims=(0, None, None, None))(two, *rows)
    found = torch.autograd.grad(losses.sum(), list(two.values()), allow_unused=True)
    gradients = torch.cat([one.flatten() for one in found if one is not None])
    trains = bool(gradients.isfinite().all() and gradients.any())
    stacks = "by vmap" if reason is None else f"one at a time: {words(reason)}"
    return "yes" if trains else "no gradient", stacks


def _ports(spec: MethodSpec, module: ModuleState, origin: HostSpec, hosts: Hosts) -> str:
    """Between which hosts a module is ported by padding."""
    for sizes, between in (((64, 4, 8), WIDTHS), ((32, 4, 4), "between hosts of the same widths")):
        try:
            port_module(module, origin, hosts("llama", *sizes), spec)
            return between
        except UserError as error:
            why = said(error)
    return f"no: {why}"


def _maps(spec: MethodSpec, module: ModuleState, origin: HostSpec, hosts: Hosts) -> str:
    """Whether a module is written in the coordinates of a wider host."""
    texts = calibration("sentences", [row["text"] for row in sentences(80, DRAWN)], 256)
    for strategy, which in (("procrustes", "all"), ("corr", "units to units")):
        try:
            port_module(module, origin, hosts("llama", 48, 2, 6), spec, strategy, texts=texts)
            return which
        except UserError:
            continue
    return "none"


def _by_way_of_lora(folder: Path, origin: HostSpec) -> str:
    try:
        to_lora(read_folder(folder), origin, 0.99)
        return "; else by way of LoRA"
    except UserError as error:
        return f"; no LoRA: {words(str(error).partition(': ')[2])}"


def family_row(family: str, specs: list[MethodSpec], hosts: Hosts) -> str:
    """A family's line of the second table."""
    refused = defaultdict(list)
    for spec in specs:
        host = hosts(family, 32, 2, 4)
        try:
            attach(host, spec).detach()
        except RUN_ERRORS as error:
            refused[said(error)].append(spec.name)
    why = "; ".join(f"{', '.join(names)}: {words}" for words, names in refused.items())
    taken = len(specs) - sum(map(len, refused.values()))
    scored = {"label": "label words", "head": "a head"}[FAMILIES[family].scoring]
    return f"| `{family}` | {scored} | {taken} of {len(specs)} | {why} |"


def said(error: Exception) -> str:
    """A library's words in an error of ours."""
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return words(re.sub(r"^.*? on host '[^']*': |^method '[^']*': ", "", text))


def words(text: str) -> str:
    """A library's words in a cell, at most 140 characters of them."""
    text = re.sub(r"\s+", " ", text.replace("|", "/")).strip()
    text = text.rstrip(".") if len(text) <= 140 else text[:140].rsplit(" ", 1)[0] + " ..."
    return text.replace("<", "&lt;").replace("*", "\\*")


def lines() -> Iterator[str]:
    """The document, line by line."""
    specs = methods()
    names = "torch", "transformers", "peft", "adapters"
    versions = ", ".join(f"{name} {version(name).partition('+')[0]}" for name in names)
    yield HEAD.format(versions=versions).rstrip("\n")
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hosts = Hosts(Path(folder))
        yield from (method_row(spec, hosts) for spec in specs)
        yield FAMILY_HEAD.rstrip("\n")
        yield from (family_row(family, specs, hosts) for family in FAMILIES)
    yield TYPE_HEAD.rstrip("\n")
    yield from (f"| {kind} | {why} |" for kind, why in NOT_COVERED.items())
