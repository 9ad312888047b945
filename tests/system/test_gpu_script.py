"""The script for a GPU, on the tiny shapes that it has for machines without one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent / "gpu.sh"
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the script is run by itself")


def run(python: str, *parts: str) -> subprocess.CompletedProcess[str]:
    """The script with this Python, and no other environment."""
    return subprocess.run(["bash", SCRIPT, *parts], capture_output=True, text=True,
                          env={**os.environ, "PYTHON": python, "NEWEST": "none", "OMP_NUM_THREADS": "1"})


@pytest.mark.full
def test_each_part_says_what_it_found():
    done = run(sys.executable)
    assert done.returncode == 0 and done.stdout.rstrip().endswith("0 failed"), done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")] == [
        "SKIPPED: transformers 5 (no none; tests/second_environment.sh makes it, or set NEWEST)"]
    assert done.stdout.count("0 captured, losses differ by 0.0e+00") == 3
    assert done.stdout.count("the library's module in a plain loop") == 4 + 1
    for name in ("trainer  ", "tuned  ", "ours K=2"):
        assert done.stdout.count(f"\n{name}") == 3  # b, d, c
    assert "hours of 1,440 cells" in done.stdout


def test_one_part_by_itself_says_what_it_found():
    done = run(sys.executable, "c")
    assert done.returncode == 0 and done.stdout.rstrip().endswith("0 failed"), done.stdout + done.stderr
    assert all(done.stdout.count(f"\n{name}") == 1 for name in ("trainer  ", "tuned  ", "ours K=2"))


def test_a_part_that_fails_stops_no_other(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$*" in *ia3*) exit 3;; *bench*) echo fine;; *) exit 1;; esac\n')
    python.chmod(0o755)
    done = run(str(python))
    assert done.returncode == 1 and done.stdout.count("fine") == 4
    assert "FAILED: a T5, (IA)3 of peft" in done.stdout and "1 failed: a T5, (IA)3 of peft" in done.stdout
