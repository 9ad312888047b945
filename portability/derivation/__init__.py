"""Hosts made of other hosts by a recipe of conf/host: how each change is done (hosts/recipes.py says what it
means), and the folder that is kept."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from portability.core.specs import HostSpec
from portability.core.versions import packages
from portability.derivation import basis, shapes, trained, weights
from portability.hosts.converted import once
from portability.hosts.host import load_plain, load_tokenizer
from portability.hosts.recipes import Recipe, place_of
from portability.hosts.sources import folder_of

Make = Callable[[Any, Any, Any, Callable[[str], HostSpec]], tuple[Any, Mapping[str, Any]]]
MADE: Mapping[str, Make] = {  # by the name of the change: model, tokenizer, change -> model, what to record
    "Continued": trained.continued, "Distilled": trained.distilled, "Thinned": shapes.thinned,
    "Narrowed": shapes.narrowed, "Noised": weights.noised, "Quantised": weights.quantised,
    "Hidden": basis.hidden,
}
RECORD = "derived.json"


def derive(recipe: Recipe, find: Callable[[str], HostSpec]) -> Path:
    """The folder of a derived host, made if it is not there, by one process at a time: weights in the
    parent's own number format, its tokenizer, and derived.json (recipe, parent's fingerprint, what was
    measured, versions).

    Args:
        find: describes a host by its name, the parent among them.

    Raises:
        UserError: the change is not defined for the parent, or as `place_of`.
    """
    return once(place_of(recipe, find), lambda draft: _make(recipe, find, draft))


def _make(recipe: Recipe, find: Callable[[str], HostSpec], draft: Path) -> None:
    parent = find(recipe.parent)
    said = json.loads((folder_of(parent) / "config.json").read_text())
    kind = type(recipe.change).__name__
    model, measured = MADE[kind](load_plain(parent), load_tokenizer(parent), recipe.change, find)
    record = {"name": recipe.name, "from": recipe.parent, "parent": parent.fingerprint,
              kind.lower(): _public(vars(recipe.change)), **measured, "versions": packages()}
    _save(model, load_tokenizer(parent), said.get("dtype") or said.get("torch_dtype"), draft)
    (draft / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def _save(model: Any, tokenizer: Any, kind: str | None, folder: Path) -> None:
    import torch

    model.to(getattr(torch, kind or "float32")).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _public(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's settings, of texts the file's name alone."""
    return {key: Path(value).name if key == "texts" else value for key, value in settings.items()}
