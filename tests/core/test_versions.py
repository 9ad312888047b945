"""Versions in records, and what is not installed."""

import pytest

import portability
from portability.core import versions
from portability.core.errors import UserError
from portability.core.versions import packages
from portability.methods import attach
from portability.run import compose, main
from support.tiny import METHODS


def test_every_package_that_can_change_a_number_has_its_version():
    found = packages()
    assert found["portability"] == portability.__version__ and "not installed" not in found.values()


@pytest.fixture
def without_adapters(monkeypatch):
    """As on an install without the extra."""
    monkeypatch.setattr(versions, "packages", lambda: packages() | {"adapters": versions.MISSING})


SAID = (r"^method '\w+' needs the library adapters, which is not installed: "
        r"pip install 'peft-portability\[adapters\]'$")


def test_a_method_of_a_library_that_is_not_installed_says_how_to_install_it(without_adapters, load):
    with pytest.raises(UserError, match=SAID):
        attach(load("bert"), METHODS["adapter"])


def test_it_says_so_before_any_work(without_adapters, tmp_path, monkeypatch, capsys):
    words = ["+sweep=smoke", "method=[lora_peft,lora]", f"results={tmp_path}", "tracking.wandb=disabled"]
    monkeypatch.setattr("sys.argv", ["run", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and said.startswith("portability: method 'lora' needs the library adapters")
    assert not (tmp_path / compose(words).name / "runs").exists()
