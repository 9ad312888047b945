"""Fixtures: tiny hosts and data sets in temporary folders; caches there too, no tracker, no hub."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import METHODS, model, sentences, tokenizer, write_set

from portability.core.specs import HostSpec
from portability.hosts.host import Host, load_host
from portability.hosts.sources import HostSource, describe
from portability.methods import attach
from portability.methods.base import AttachedMethod


@pytest.fixture(scope="session")
def make_host(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., HostSpec]:
    """family, hidden, layers, heads, seed -> the spec of a host saved in a folder (made once a session)."""
    made: dict[tuple, HostSpec] = {}

    def make(family: str = "t5", hidden: int = 32, layers: int = 2, heads: int = 4, seed: int = 0) -> HostSpec:
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


@pytest.fixture(autouse=True, scope="session")
def _quiet(tmp_path_factory: pytest.TempPathFactory):
    """Caches in a temporary folder, no tracker, no hub, and Ctrl-C for the commands that tests start."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as shells start what ends with `&`; commands would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    patch = pytest.MonkeyPatch()
    patch.setenv("PORTABILITY_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setenv("WANDB_ERROR_REPORTING", "false")
    yield
    patch.undo()


@pytest.fixture
def study(tmp_path: Path):
    """A whole small study of invented records, every cell done (tests/analysis/synthetic.py)."""
    from support.synthetic import build

    return build(tmp_path / "results" / "toy")
