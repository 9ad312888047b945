"""Under which licences a submission's results, hosts and data sets stand: a small YAML file beside it."""

from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import yaml

NAME = "licences.yaml"
KINDS = ("hosts", "data")


def faults(root: Path, names: Mapping[str, Set[str]]) -> Iterator[str]:
    """What is wrong with the licences of a submission, a sentence each.

    Args:
        names: of the hosts and the data sets of its records, by KINDS.
    """
    try:
        told = yaml.safe_load((root / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        yield f"{NAME} is not there; write it as docs/submitting.md shows"
        return
    except (OSError, ValueError, yaml.YAMLError) as error:
        yield f"{NAME} is no YAML ({str(error).splitlines()[0]}); write it as docs/submitting.md shows"
        return
    if not isinstance(told, dict) or told.keys() != {"results", *KINDS}:
        yield f"{NAME} must have three keys: results, hosts and data; docs/submitting.md shows it"
        return
    if not _is_licence(told["results"]):
        yield f"{NAME} names no licence of the results; add one, such as: results: CC-BY-4.0"
    for kind in KINDS:
        given = told[kind] if isinstance(told[kind], dict) else {}
        for name in sorted(names[kind] - {name for name, licence in given.items() if _is_licence(licence)}):
            yield f"{NAME} names no licence of '{name}' under {kind}; add one, such as: {name}: Apache-2.0"
        for name in sorted(map(str, given.keys() - names[kind])):
            yield f"{NAME} has '{name}' under {kind}, which no record names; remove it, or correct the name"


def _is_licence(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
