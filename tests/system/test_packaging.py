"""What is released: a source distribution, the wheel that is built from it, and a container file. The wheel
works in an environment of its own, from an empty folder: configuration, sweeps, hosts and data travel in it.

That environment sees the libraries that are installed here, so it says nothing of versions:
tests/second_environment.sh installs what pyproject.toml asks for, tests/test_layout.py holds imports to it.
No engine for containers is needed: the container file is read, not run.
"""

import os
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from portability import __version__

ROOT = Path(__file__).parents[2]
OUTSIDE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
MOST = 8_000_000  # bytes of a wheel; 7 small hosts and their data are most of it


def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command that knows nothing of the checkout."""
    return subprocess.run([str(word) for word in words], cwd=cwd, env=OUTSIDE, capture_output=True, text=True)


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """The folder with both distributions, built from what a commit of this checkout would hold."""
    source = tmp_path_factory.mktemp("release") / "source"
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others",
                             "--exclude-standard"], capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists() or (ROOT / name).is_symlink():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_symlink():
                (source / name).symlink_to(os.readlink(ROOT / name))
            else:
                (source / name).write_bytes((ROOT / name).read_bytes())
    built = run(sys.executable, "-m", "build", "--no-isolation", cwd=source)  # the wheel from the other one
    assert built.returncode == 0, built.stdout + built.stderr
    return source / "dist"


def only(folder: Path, ending: str) -> Path:
    """The one file of this ending."""
    (path,) = folder.glob(f"*{ending}")
    return path


def test_both_distributions_are_ready_for_an_index(dist):
    names = [f"peft_portability-{__version__}{ending}" for ending in ("-py3-none-any.whl", ".tar.gz")]
    assert sorted(path.name for path in dist.iterdir()) == names
    checked = run(sys.executable, "-m", "twine", "check", "--strict", *sorted(dist.iterdir()), cwd=dist)
    assert checked.returncode == 0 and checked.stdout.count("PASSED") == 2, checked.stdout + checked.stderr


def test_a_source_distribution_holds_what_the_wheel_is_built_of_and_no_tests_or_results(dist):
    with tarfile.open(only(dist, ".tar.gz")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CHANGELOG.md", "LICENSE", "constraints.txt", "conf/config.yaml", "sweeps/demo.yaml"} <= names
    assert {name.partition("/")[0] for name in names} & {"tests", "results", "docs", ".ci", ".git"} == set()


def test_a_wheel_holds_the_package_its_configuration_and_hosts_and_is_small(dist):
    wheel = only(dist, ".whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = [name for name in names if name.endswith("dist-info/METADATA")]
        said = message_from_bytes(archive.read(metadata))
    assert said["Version"] == __version__ and said["License-Expression"] == "Apache-2.0"
    assert {name.partition("/")[0] for name in names if "dist-info" not in name} == {"portability"}
    assert "portability/conf/sweep/demo.yaml" in names and "portability/analysis/tables/registry.py" in names
    for kind in ("method", "host", "data", "init", "port", "protocol"):
        assert len([name for name in names if name.startswith(f"portability/conf/{kind}/")]) == len(
            list((ROOT / "conf" / kind).glob("*.yaml")))
    assert len([name for name in names if name.endswith("model.safetensors")]) == 7
    assert wheel.stat().st_size < MOST


def test_a_wheel_works_in_an_environment_of_its_own_from_an_empty_folder(dist, tmp_path):
    venv, away = tmp_path / "venv", tmp_path / "away"
    away.mkdir()
    made = run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=away)
    assert made.returncode == 0, made.stderr
    site = next((venv / "lib").glob("python*/site-packages"))
    installed = [path for path in sys.path if path.endswith("site-packages")]
    (site / "libraries.pth").write_text("\n".join(installed))  # no .pth of theirs is read: no checkout
    pip = [sys.executable, "-m", "pip", "--python", venv, "--quiet", "--disable-pip-version-check"]
    put = run(*pip, "install", "--no-deps", "--no-index", only(dist, ".whl"), cwd=away)
    assert put.returncode == 0, put.stderr
    where = run(venv / "bin/python", "-c", "import portability; print(portability.__file__)", cwd=away)
    assert Path(where.stdout.strip()).is_relative_to(site), where.stdout + where.stderr
    command = venv / "bin/portability"
    assert run(command, "--version", cwd=away).stdout == f"portability {__version__}\n"
    plan = run(command, "run", "+sweep=demo", "mode=plan", cwd=away)
    assert plan.returncode == 0 and "study demo" in plan.stdout, plan.stderr
    nothing = run(command, "analyze", "results/", cwd=away)
    assert nothing.returncode == 2 and "nothing was run there yet" in nothing.stderr
    assert list(away.iterdir()) == []


def test_the_container_file_has_no_fault_and_takes_what_is_sent_to_it():
    found = run(Path(sys.executable).parent / "hadolint", ROOT / "Containerfile", cwd=ROOT)
    assert found.returncode == 0, found.stdout + found.stderr
    (copied,) = [line.split()[1:-1] for line in (ROOT / "Containerfile").read_text().splitlines()
                 if line.startswith("COPY ")]
    sent = [line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines()
            if line.startswith("!")]
    assert sorted(copied) == sorted(sent)
