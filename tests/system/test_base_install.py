"""What an install without adapters can do, from the command to a table; methods of adapters say what they
need."""

import subprocess
import sys
from pathlib import Path

import pytest

from portability.core.versions import installed

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(installed("adapters"), reason="tests/second_environment.sh is without")


def run(module, *words, cwd):
    return subprocess.run([sys.executable, "-m", module, *words], cwd=cwd, capture_output=True, text=True)


def test_the_smoke_sweep_runs_to_a_table_with_a_method_of_peft(tmp_path):
    words = ["+sweep=smoke", "method=lora_peft", "tracking.wandb=disabled", f"results={tmp_path}", "yes=true"]
    done = run("portability.run", *words, cwd=tmp_path)
    assert done.returncode == 0 and "9 done, 0 failed" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr and "Loading weights" not in done.stderr
    analyzed = run("portability.analyze", str(tmp_path / "smoke_nano"), "--quiet", cwd=tmp_path)
    assert analyzed.returncode == 0, analyzed.stderr
    assert "lora_peft" in (tmp_path / "smoke_nano/report.md").read_text()


def test_a_method_of_adapters_says_what_to_install(tmp_path):
    done = run("portability.run", "+sweep=smoke", "tracking.wandb=disabled", f"results={tmp_path}",
               cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.splitlines()[-1] == (
        "portability: method 'adapter' needs the library adapters, which is not installed: pip install "
        "'peft-portability[adapters]'")
    assert not list(tmp_path.rglob("runs"))
