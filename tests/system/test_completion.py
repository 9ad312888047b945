"""The Tab key in bash: a real one sources what argcomplete registers, and asks the command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = str(Path(__file__).parents[2])
SCRIPT = """
eval "$({python} -m argcomplete.scripts.register_python_argcomplete portability)"
COMP_LINE="$1" COMP_POINT=${{#1}} COMP_TYPE=9
_python_argcomplete portability "" ""
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    """What bash would write for a line when Tab is pressed at its end."""
    folder = tmp_path_factory.mktemp("bin")
    command = folder / "portability"
    command.write_text(f"#!{sys.executable}\nfrom portability.cli import main\nraise SystemExit(main())\n")
    command.chmod(0o755)
    (folder / "mine.yaml").touch()
    (folder / "results/mine/runs/3f/3f2a9c0d1e4b5a67").mkdir(parents=True)

    def press(line: str) -> list[str]:
        environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": ROOT}
        done = subprocess.run(["bash", "--norc", "-c", SCRIPT.format(python=sys.executable), "bash", line],
                              cwd=folder, capture_output=True, text=True, env=environment, timeout=120)
        assert done.returncode == 0 and not done.stderr, done.stderr
        return [word.strip() for word in done.stdout.splitlines()]

    return press


@pytest.mark.parametrize(("line", "words"), [
    ("portability po", ["port"]), ("portability store ve", ["verify"]),
    ("portability port x --dr", ["--dry-run"]),
    ("portability run +sw", ["+sweep="]), ("portability run +sweep=de", ["demo"]),
    ("portability run grid.se", ["grid.seeds="]), ("portability run origin=raw_", ["raw_base", "raw_large"]),
    ("portability run method=[lora,compacter_", ["\\[lora,compacter_plus_plus"]),
    ("portability run mode=p", ["plan"]), ("portability run similarity=", ["true", "false"]),
    ("portability port x --strategy procr", ["procrustes"]), ("portability list host_", ["host_sets"]),
    ("portability export results/mine 3", ["3f2a9c0d1e4b5a67"]),
    ("portability analyze --metric eval_rou", ["eval_rougeL"]),
    ("portability run mine.y", ["mine.yaml"]), ("portability init --method lora_pe", ["lora_peft"]),
    ("portability compare --against scr", ["scratch"]), ("portability analyze resu", ["results/"]),
])
def test_tab_completes_commands_options_settings_and_files(tab, line, words):
    assert tab(line) == words
