"""What an adapter's folder says of a method or a host: entries of a configuration, with torch."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from portability.core.architectures import FAMILIES, sites_of
from portability.core.errors import UserError
from portability.core.specs import ExternalModule, HostSpec
from portability.hosts.resolve import ADAPTER_FILES, find_folder, find_host, with_weights
from portability.planning.grid import Grid

if TYPE_CHECKING:
    from portability.methods.folder import AdapterFolder

OWN_BASE = "the module's base"  # as the name of an origin host
KEPT = ("exclude_modules", "feedforward_modules", "layers_to_transform", "layers_pattern", "rank_pattern",
        "alpha_pattern")  # name modules beside target_modules


def method_of(words: str, name: str) -> dict[str, Any]:
    """A method's entry out of an adapter's folder; the learning rate, which no such folder says, is None.
    Names of modules become sites, which hosts of other families have, too, where they are the same thing.

    Args:
        words: the folder, or a hub id.
        name: of the method, for messages.

    Raises:
        UserError: there is no such folder, or it holds no method of an installed library.
    """
    from portability.methods import files
    from portability.methods.folder import CONFIG

    folder, _ = find_folder(words, f"method.{name}.from:", [CONFIG])
    spec = files.method_of(folder)
    settings = dict(spec.settings)
    targets = settings.get("target_modules")
    sites = sites_of(targets) if isinstance(targets, list) else None
    if targets == "all-linear":
        sites = ["attention", "ffn"]
    if sites and not any(key in settings for key in KEPT):
        del settings["target_modules"]
        settings["sites"] = sites
    if "${" in json.dumps(settings):
        raise UserError(f"{folder / CONFIG}: a setting holds '${{', which would be a reference here")
    return {"library": spec.library, "config": spec.config, "settings": settings, "learning_rate": None}


# ---- a module from elsewhere, as the origin's of a study


def _read(words: str) -> "AdapterFolder":
    from portability.methods.files import read_folder

    return read_folder(find_folder(words, "origin.module:", ADAPTER_FILES)[0])


def external(words: str) -> ExternalModule:
    """The module in an adapter's folder.

    Args:
        words: the folder, or a hub id.

    Raises:
        UserError: there is no such folder, or what it holds cannot be read.
    """
    from portability.inits.external import described

    return described(_read(words))


def base_of(words: str, others: Sequence[HostSpec]) -> HostSpec:
    """The host that an adapter's folder names as its base.

    Args:
        others: hosts of the study; one of them with the base's own fingerprint is taken for it.

    Raises:
        UserError: it names none, or one that cannot be found.
    """
    adapter, remedy = _read(words), "name the origin host: origin=HOST"
    if not adapter.base:
        raise UserError(f"origin.module={words} does not say what its base is; {remedy}")
    try:
        found = with_weights(find_host(str(adapter.base_words)))
    except UserError as error:
        raise UserError(f"the base of origin.module={words}: {error}; {remedy}") from error
    for other in others:
        if other.fingerprint == found.fingerprint:
            return other
        if other.name == found.name:
            raise UserError(f"the base of origin.module={words} is called '{found.name}', as another host of "
                            "the study is; give it a name in conf/host, and name it: origin=HOST")
    return found


def check_external(grid: Grid, words: str) -> None:
    """Refuse axes that do not go with a module from elsewhere.

    Raises:
        UserError: several origin hosts, a head that no folder holds, an init that follows the origin's
            training, or a method or host that is not the module's.
    """
    from portability.inits.external import check_external as check

    adapter, hosts = _read(words), {origin.fingerprint: origin for origin, _ in grid.pairs}
    if len(hosts) > 1:
        raise UserError(f"origin.module={words} is the module of one host, and grid.pairs has the origins "
                        f"{', '.join(host.name for host in hosts.values())}; leave one")
    for init in grid.inits:
        if init.traits.trains_extra:
            raise UserError(f"init '{init.name}' is trained for the origin's updates on top, and of the "
                            "module of origin.module these are not known; leave it out (grid.inits)")
    encoders = [host for _, host in grid.pairs if FAMILIES[host.shape.family].scoring == "head"]
    if encoders and grid.head == "shared":
        raise UserError(f"host '{encoders[0].name}' needs a classification head, and origin.module={words} "
                        "brings none to share; set head=fresh")
    for method in grid.methods:
        check(adapter, next(iter(hosts.values())), method)
