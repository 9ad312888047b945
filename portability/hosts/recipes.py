"""Hosts derived from other hosts: what a recipe says, and where the host is kept once it was made (no
torch)."""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import PositiveFloat

from portability.core.errors import UserError, validate_choice
from portability.core.hashing import cache_folder, file_digest
from portability.core.schema import Count, build
from portability.core.specs import HostSpec, digest


@dataclass(frozen=True)
class Continued:
    """All weights trained further as a language model, with the host's own dropout, by AdamW on windows of
    running text.

    Attributes:
        texts: a file, JSONL with a key `text`, or a text a line.
        learning_rate: constant.
        windows: of `length` tokens each, in an update.
        seed: of the windows and the dropout.
    """

    texts: str
    updates: Count
    learning_rate: PositiveFloat = 1e-4
    windows: Count = 8
    length: Count = 64
    seed: int = 0


@dataclass(frozen=True)
class Distilled:
    """All weights trained so that the last states of texts are those of another host, by AdamW, with the
    host's own dropout; the other host has none.

    Attributes:
        like: the host whose states are met, of the same width and vocabulary.
        texts: as of `Continued`; an update reads `batch` of them, each cut to `length` tokens.
        learning_rate: constant.
        seed: of the texts and the dropout.
    """

    like: str
    texts: str
    updates: Count
    learning_rate: PositiveFloat = 1e-4
    batch: Count = 16
    length: Count = 64
    seed: int = 0


@dataclass(frozen=True)
class Thinned:
    """So many layers of each stack are kept, evenly spaced, the first and the last among them."""

    layers: Count


@dataclass(frozen=True)
class Narrowed:
    """So many coordinates of the residual stream and units of the feed-forward network are kept, those whose
    weights have the largest norms (our choice); heads stay as they are."""

    hidden: Count
    ffn: Count


@dataclass(frozen=True)
class Noised:
    """Normal noise is added to each matrix.

    Attributes:
        share: the noise's norm as a share of the matrix's, from 0 on; or
        like: a host, from whose matrix this one differs by the same norm.
    """

    share: float | None = None
    like: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Quantised:
    """Each matrix is rounded to whole numbers of `bits` bits with a scale for each `group` numbers of a row,
    the largest of which is met (round to nearest, symmetric), and kept as plain numbers."""

    bits: Count = 4
    group: Count = 32


@dataclass(frozen=True)
class Hidden:
    """The same function in another basis: the residual stream is turned by a random rotation, units of the
    feed-forward network stand in another order."""

    seed: int = 0


Change = Continued | Distilled | Thinned | Narrowed | Noised | Quantised | Hidden
CHANGES: Mapping[str, type] = {"continued": Continued, "distilled": Distilled, "thinned": Thinned,
                               "narrowed": Narrowed, "noised": Noised, "quantised": Quantised,
                               "hidden": Hidden}
# which edition of its code makes a change; raise it where the same recipe would give other weights, and the
# host is made anew (1 is left out of the name of its folder); not raised when dropout was seeded, since hosts
# without dropout kept their weights
RULES = dict.fromkeys(CHANGES, 1)


def kind_of(change: Change) -> str:
    """What a change is called in a study: its name and, of further training, the data set of its texts.

    Example:
        >>> [kind_of(change) for change in (Continued("films/train.jsonl", 60), Thinned(4))]
        ['continued on films', 'thinned']
    """
    kind = type(change).__name__.lower()
    if not isinstance(change, Continued | Distilled):
        return kind
    texts = Path(change.texts).expanduser()
    in_set = texts.stem == "train" and texts.parent.name and texts.parent != Path.home()  # no user's name
    return f"{kind} on {texts.parent.name if in_set else texts.stem}"


@dataclass(frozen=True)
class Recipe:
    """A host `name` is host `parent` with one change."""

    name: str
    parent: str
    change: Change


def read_recipe(name: str, value: Mapping[str, Any]) -> Recipe:
    """A recipe of conf/host: ``{from: HOST, CHANGE: {...}}``.

    Raises:
        UserError: no parent, not one change, or a wrong setting of it.
    """
    where = f"host.{name}.derive"
    kinds = [key for key in value if key != "from"]
    if not value.get("from") or len(kinds) != 1:
        raise UserError(f"{where} must name the host it is made from and one change, as in "
                        f"{{from: HOST, thinned: {{layers: 20}}}}, got {dict(value)}")
    kind = validate_choice(kinds[0], CHANGES, f"change in {where}")
    change: Change = build(CHANGES[kind], value[kind] or {}, f"{where}.{kind}")
    if isinstance(change, Noised) and (change.share is None) == (change.like is None):
        raise UserError(f"{where}.noised needs either a share or a host that it is to be like")
    return Recipe(name, str(value["from"]), change)


def place_of(recipe: Recipe, find: Callable[[str], HostSpec]) -> Path:
    """The folder of a derived host in the cache, which follows from the recipe and its rule, the parent's
    fingerprint and the texts.

    Args:
        find: describes a host by its name.

    Raises:
        UserError: there is no such text, or as `find`.
    """
    settings, kind = asdict(recipe.change), type(recipe.change).__name__.lower()
    if isinstance(recipe.change, Continued | Distilled):
        texts = Path(recipe.change.texts).expanduser()
        if not texts.is_file():
            raise UserError(f"host '{recipe.name}' is trained on texts, and there is no file {texts}; "
                            f"host.{recipe.name}.derive.{kind}.texts=FILE")
        settings["texts"] = file_digest(texts)
    if isinstance(recipe.change, Noised | Distilled) and recipe.change.like:
        settings["like"] = find(recipe.change.like).fingerprint
    edition = [RULES[kind]] if RULES[kind] > 1 else []
    mark = digest([kind, settings, find(recipe.parent).fingerprint, *edition])[:16]
    return cache_folder() / "hosts" / f"{re.sub(r'[^A-Za-z0-9._-]', '-', recipe.name)}-{mark}"


class NotMade(UserError):
    """A derived host is not there yet."""


def made(recipe: Recipe, find: Callable[[str], HostSpec]) -> Path:
    """As `place_of`, of a host that was made.

    Raises:
        NotMade: it was not made yet.
        UserError: as `place_of`.
    """
    if not (place := place_of(recipe, find)).is_dir():
        raise NotMade(f"host '{recipe.name}' is derived from '{recipe.parent}' and was not made here yet; "
                        f"make it once: portability derive {recipe.name}")
    return place
