"""Tests stand alone, each file's name is unique, and few combinations of axes hold each pair of their
values."""

import ast
import multiprocessing
import subprocess
import sys
import tomllib
from collections import Counter
from importlib.metadata import packages_distributions, requires
from itertools import combinations
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support.pairs import over, pairs, representatives

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "tests").rglob("test_*.py"))
EXTRAS = ("adapters", "ray", "real", "slurm", "dashboard")  # those of users
COME = {  # what is imported and comes with what is asked for, whose interface it is a part of
    "huggingface-hub": "transformers", "tokenizers": "transformers", "packaging": "transformers",
    "omegaconf": "hydra-core", "markupsafe": "jinja2",
}


def imported(path: Path) -> set[str]:
    """Last parts of the names of the modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(alias.name for alias in node.names)}
    return {name.rpartition(".")[2] for name in names}


def name_of(requirement: str) -> str:
    """The distribution that a requirement is of, as indices compare names."""
    return canonicalize_name(Requirement(requirement).name)


def test_no_test_module_imports_another():
    modules = {path.stem for path in FILES}
    assert {path.name: found for path in FILES if (found := imported(path) & modules)} == {}


def test_the_wheel_holds_every_package():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = [path.parent.relative_to(ROOT) for path in (ROOT / "portability").rglob("__init__.py")]
    folders += [Path("portability", path.parent.relative_to(ROOT))
                for path in (ROOT / "analysis").rglob("__init__.py")]
    assert {".".join(folder.parts) for folder in folders} <= {*listed}


def test_what_is_imported_is_asked_for_or_comes_with_what_is():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    own = [*project["dependencies"], *(text for name in EXTRAS for text in extras[name])]
    asked = {name_of(text) for text in own}
    assert all(by in asked and name in {name_of(text) for text in requires(by) or []}
               for name, by in COME.items())
    known = packages_distributions()
    none = {*sys.stdlib_module_names, "portability"}
    needed: dict[str, set[str]] = {}  # distribution -> files
    for path in [*(ROOT / "portability").rglob("*.py"), *(ROOT / "analysis").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else (
                [node.module] if isinstance(node, ast.ImportFrom) and not node.level else [])
            for top in {str(name).partition(".")[0] for name in names} - none:
                needed.setdefault(name_of(known[top][0]), set()).add(path.name)
    assert len(needed) > 20
    assert {name: files for name, files in needed.items() if name not in asked | {*COME}} == {}


def test_no_two_test_modules_have_one_name():
    assert [name for name, count in Counter(path.name for path in FILES).items() if count > 1] == []


def test_a_quick_test_can_start_no_process():
    for start in (lambda: subprocess.run([sys.executable, "-c", ""]),
                  multiprocessing.get_context("spawn").Process(target=print).start):
        with pytest.raises(pytest.fail.Exception, match="marked `system`"):
            start()


def test_the_quick_part_of_a_product_is_its_pairs_and_the_rest_is_full():
    every = over(a="xy", b=[1, 2, 3], c=[True, False]).args[1]
    assert len(every) == 12
    assert [one.values for one in every if not one.marks] == sorted(
        pairs(a="xy", b=[1, 2, 3], c=[True, False]), key=[one.values for one in every].index)
    with pytest.raises(ValueError, match="no values of this axis"):
        representatives(["bert", "llama"], "t5")


def test_each_pair_of_values_of_two_axes_occurs_in_few_combinations():
    axes = {"a": range(5), "b": "wxyz", "c": [True, False, None], "d": range(3)}
    few = pairs(**axes)
    for one, other in combinations(range(4), 2):
        wanted = {(x, y) for x in list(axes.values())[one] for y in list(axes.values())[other]}
        assert {(row[one], row[other]) for row in few} == wanted
    assert few == pairs(**axes) and len(few) < 2 * 5 * 4
