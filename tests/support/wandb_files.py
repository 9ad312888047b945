"""W&B's own offline files, read with its own reader."""

import json
import subprocess
import sys
from pathlib import Path


def inspect(file, *how):
    """The records of an offline file, one dictionary each."""
    tool = Path(sys.executable).parent / "wandb"
    done = subprocess.run([str(tool), "leet", "inspect", "--json", *how, str(file)], capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.strip()]


def files(folder):
    """Offline files of a study, by the id of the W&B run."""
    return {path.stem.removeprefix("run-"): path
            for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"))}
