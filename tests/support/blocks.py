"""The code blocks of documents, run as a reader would run them: in order, in one empty folder a page.

Blocks of sh, console and python are run. A comment on the line above says otherwise:

    <!-- run: plan -->        its studies are composed and checked, not carried out, and nothing else is done
    <!-- run: no: WHY -->     it is not run

In a console block `$` stands before a command, and what it prints is on the page. A block of python, yaml or
toml that names a file in its first two lines (`# mine/data/reviews.yaml`) is that file. A page that says
`<!-- begin: tutorial.md -->` begins in the folder that the first python block of that page makes, with
`<!-- begin: ../results -->` in one that holds this folder.

    PYTHONPATH=tests python -m support.blocks docs/tutorial.md      # writes what commands print into the page
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r"(?:^<!-- run: (?P<mark>.*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)
MARK = re.compile(r"plan|(no): .+")
FILE = re.compile(r"\A(?:# @.*\n)?# (\w[\w./-]*\.\w+)$", re.M)
BEGIN = re.compile(r"^<!-- begin: (\S+) -->$", re.M)
RUN = ("sh", "console", "python")
MEASURED = re.compile(r"(?<=^slowest: ).*|(?<![\w.])[+−-]?\d+\.\d+(?:e[+-]?\d+)?|\b[0-9a-f]{16}\b", re.M)


@dataclass(frozen=True)
class Block:
    """A code block of a page.

    Attributes:
        mark: "run", "plan" or "no".
        file: the file that it is, if it is one.
    """

    language: str
    text: str
    mark: str
    file: str | None

    @property
    def runs(self) -> bool:
        return self.mark == "run" and self.language in RUN and self.file is None


def pages() -> list[Path]:
    """Every page whose blocks are looked at: all but decisions."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    return sorted(path for path in found if "decisions" not in path.parts)


def blocks(text: str) -> list[Block]:
    """The code blocks of a page, in order.

    Raises:
        ValueError: a mark that cannot be read.
    """
    found = []
    for match in BLOCK.finditer(text):
        read = MARK.fullmatch(match["mark"] or "plan")
        if not read:
            raise ValueError(f"cannot read the mark 'run: {match['mark']}'")
        mark = (read[1] or "plan") if match["mark"] else "run"
        file = FILE.search(match["text"]) if match["language"] in ("python", "yaml", "toml") else None
        found.append(Block(match["language"], match["text"], mark, file[1] if file else None))
    return found


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command of a block of sh, without comments."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


def environment(folder: Path, checkout: bool = True) -> dict[str, str]:
    """Variables by which `pip install` fetches nothing and puts things into a folder; no hub is asked.

    Args:
        folder: for what is installed, and for the cache.
        checkout: whether `portability` is that of this checkout; else it is there once it is installed.
    """
    programs, path = folder / "bin", [str(folder), *([str(ROOT)] if checkout else [])]
    if checkout:
        programs.mkdir(parents=True)
        (programs / "portability").write_text(f'#!/bin/sh\nexec {sys.executable} -m portability "$@"\n')
        (programs / "portability").chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": ":".join(path),
        "PIP_TARGET": str(folder),
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_QUIET": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PORTABILITY_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "disabled",
        "COLUMNS": "88",
        "NO_COLOR": "1",
    }


def run(text: str, folder: Path, env: Mapping[str, str]) -> str:
    """Run a page's blocks in a folder; gives back the page with what its console commands printed there.

    Raises:
        AssertionError: a block of sh or python failed; a console block may, and then shows what was said.
    """
    for match, block in zip(BLOCK.finditer(text), blocks(text), strict=True):
        if block.file and block.mark == "run":
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(block.text)
        elif block.runs and block.language == "console":
            printed = "".join(_printed(command, folder, env) for command in _asked(block.text))
            text = text.replace(match[0], match[0].replace(block.text, printed))
        elif block.runs:
            words = (
                [sys.executable, "-c"] if block.language == "python" else ["bash", "-eo", "pipefail", "-c"]
            )
            done = subprocess.run([*words, block.text], cwd=folder, env=env, capture_output=True, text=True)
            assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
    return text


def _asked(text: str) -> list[str]:
    """The commands of a console block; a backslash goes on in the next line."""
    return re.findall(r"^\$ ((?:.*\\\n)*.*)$", text, re.M)


def _printed(command: str, folder: Path, env: Mapping[str, str]) -> str:
    """A command behind its sign, and what it printed: its results, or where it failed what it said."""
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True)
    said = done.stdout + (done.stderr if done.returncode else "")
    return f"$ {command}\n" + "".join(f"{line.rstrip()}\n" for line in said.splitlines())


def begun(text: str, folder: Path, env: Mapping[str, str]) -> None:
    """Make what is in the folder that a page begins in."""
    found = BEGIN.search(text)
    other = (ROOT / "docs" / found[1]).resolve() if found else None
    if other and other.is_dir():
        (folder / other.name).symlink_to(other)
    elif other:
        text = other.read_text()
        run(next(match[0] for match in BLOCK.finditer(text) if match["language"] == "python"), folder, env)


def compared(text: str) -> str:
    """A page without what is measured, and without the widths of columns, which follow from it."""
    return re.sub(r"[ ─]+", " ", MEASURED.sub("#", text))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        page = Path(name)
        with tempfile.TemporaryDirectory() as place:
            here, installed = Path(place) / "here", environment(Path(place) / "installed")
            here.mkdir()
            if page.name == "tutorial.md":  # it begins with a wheel
                from support.wheel import built

                shutil.copy(built(Path(place)), here)
            begun(page.read_text(), here, installed)
            page.write_text(run(page.read_text(), here, installed))
