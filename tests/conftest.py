"""Tiers; fixtures: tiny hosts and data sets in temporary folders; caches there too, no tracker, no hub."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from portability.core.specs import HostSpec
from portability.execution.worker import ENVIRONMENT
from portability.hosts.host import Host, load_host
from portability.hosts.sources import HostSource, describe
from portability.methods import attach
from portability.methods.base import AttachedMethod
from support import answers, result_table
from support.tiny import METHODS, model, sentences, tokenizer, write_set

os.environ["MKL_CBWR"] = ENVIRONMENT["MKL_CBWR"]  # tests multiply as workers do
TIERS = ("unit", "contract", "system", "full")
HERE = Path(__file__).parent
STARTING = ("portability.execution.processes.in_child",)  # examples in docstrings that start processes


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--result-table", type=Path, help="write a Markdown table of the results to this file")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test's tier is what it is marked with, or else that of its folder or file."""
    for item in items:
        if not any(item.get_closest_marker(tier) for tier in TIERS):
            item.add_marker("system" if item.name in STARTING else tier_of(item.path))
        assert sum(item.get_closest_marker(tier) is not None for tier in TIERS) == 1, item.nodeid


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    """Unit and contract tests start no process by subprocess or multiprocessing, so that they are quick; but
    git, which tells records their commit."""
    quick = item.get_closest_marker("unit") or item.get_closest_marker("contract")
    with pytest.MonkeyPatch.context() as patch:
        if quick and not item.get_closest_marker("smoke"):
            patch.setattr(subprocess, "Popen", Git)
            patch.setattr(BaseProcess, "start", _refused)
        return (yield)


def _refused(*_: object) -> NoReturn:
    pytest.fail("a test that starts a process is to be marked `system`", pytrace=False)  # caught by nobody


class Git(subprocess.Popen):
    """A process of git, and of nothing else."""

    def __init__(self, args: Sequence[str], *more: Any, **options: Any):
        if args[0] != "git":
            _refused()
        super().__init__(args, *more, **options)


def tier_of(path: Path) -> str:
    """The tier of a file's tests."""
    folder = path.relative_to(HERE).parts[0] if path.is_relative_to(HERE) else ""
    return folder if folder == "system" else "contract" if path.stem.endswith("_contract") else "unit"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if path := config.getoption("--result-table"):
        result_table.write(path, terminalreporter.stats)


@pytest.fixture(scope="session")
def make_host(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., HostSpec]:
    """family, hidden, layers, heads, seed -> the spec of a host saved in a folder (made once a session)."""
    made: dict[tuple, HostSpec] = {}

    def make(family: str = "t5", hidden: int = 32, layers: int = 2, heads: int = 4,
             seed: int = 0) -> HostSpec:
        key = (family, hidden, layers, heads, seed)
        if key not in made:
            folder = tmp_path_factory.mktemp(f"{family}-{hidden}x{layers}-{seed}-")
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model(family, hidden, layers, heads).save_pretrained(folder)
            tokenizer().save_pretrained(folder)
            made[key] = describe(HostSource(folder.name, path=str(folder)))
        return made[key]

    return make


@pytest.fixture(scope="session")
def load(make_host: Callable[..., HostSpec]) -> Callable[..., Host]:
    """As `make_host`, but loaded (a new copy each time)."""
    return lambda *args, **kwargs: load_host(make_host(*args, **kwargs))


@pytest.fixture(scope="session")
def mount(load: Callable[..., Host]) -> Callable[..., AttachedMethod]:
    """method name, then as `make_host`: the method on a freshly loaded host."""
    return lambda method, *args, **kwargs: attach(load(*args, **kwargs), METHODS[method])


@pytest.fixture(scope="session")
def data_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two small sets, "one" and "two", as folders of jsonl files without a shared sentence."""
    root, rows = tmp_path_factory.mktemp("data"), sentences(560, 7)
    for place, name in enumerate(("one", "two")):
        part = rows[place * 280 : (place + 1) * 280]
        write_set(root / name, part[:200], part[200:240], part[240:])
    return {name: root / name for name in ("one", "two")}


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of a set of answers to write and of one of choices."""
    root = tmp_path_factory.mktemp("sets")
    for place, kind in enumerate(("written", "chosen")):
        (root / kind).mkdir()
        found = answers.rows(kind, 130, place)
        for split, part in (("train", found[:80]), ("validation", found[80:100]), ("test", found[100:])):
            (root / kind / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return root


@pytest.fixture(scope="session")
def many_questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with far more to score than to train on."""
    rows = sentences(740, 11)
    return write_set(tmp_path_factory.mktemp("many") / "many", rows[:100], rows[100:140], rows[140:])


@pytest.fixture
def no_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B's own folders and keys are those of nobody."""
    home = tmp_path_factory.mktemp("home")
    for name in ("HOME", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(home))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_ENTITY", "NETRC"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True, scope="session")
def _quiet(tmp_path_factory: pytest.TempPathFactory):
    """Caches in a temporary folder, no tracker, no hub, and Ctrl-C for the commands that tests start."""
    # as shells start what ends with `&`; commands would inherit it
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    patch = pytest.MonkeyPatch()
    patch.setenv("PORTABILITY_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setenv("WANDB_ERROR_REPORTING", "false")
    yield
    patch.undo()


@pytest.fixture
def study(tmp_path: Path):
    """A whole small study of invented records, every cell done (support.synthetic)."""
    from support.synthetic import build

    return build(tmp_path / "results" / "toy")
