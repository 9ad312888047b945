"""What was logged to W&B is read back from its own offline files, with its own reader."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from portability.errors import UserError
from portability.tracking import Tracker, TrackingSpec, describe_run, resolve_mode

RECORD = {
    "run_id": "0123456789abcdef", "spec": {"seed": 3, "method": {"name": "lora", "settings": {"r": 8}}},
    "cell": {"method": "lora", "host": "b", "data": "films", "init": "ported", "seed": 3,
             "origin": {"host": "a", "data": "meals"}},
    "port_info": {"name": "pad", "strategy": "pad", "carried_fraction": 1.0},
    "train_info": {"train_loss": [[10, 0.7], [20, 0.5]],
                   "metrics": [{"updates": 0, "eval_accuracy": 0.5}, {"updates": 20, "eval_accuracy": 0.75}]},
}


def inspect(file, *how):
    tool = Path(sys.executable).parent / "wandb"
    done = subprocess.run([str(tool), "leet", "inspect", "--json", *how, str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.strip()]


def test_a_run_is_filed_under_its_cell_without_the_seed():
    how = describe_run(RECORD, "demo", 2)
    assert how["group"] == "lora__a->b__meals->films__ported__pad" and how["job_type"] == "port"
    assert how["id"] == "0123456789abcdef-2" and set(how["tags"]) == {"lora", "ported", "b", "demo"}


def test_what_was_logged_offline_is_read_back(tmp_path):
    tracker = Tracker(TrackingSpec("offline", "portability-test", tmp_path, "demo"))
    tracker.log_run(RECORD)
    tracker.log_run(RECORD)  # a second attempt has an id of its own
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert [file.stem for file in files] == ["run-0123456789abcdef-1", "run-0123456789abcdef-2"]
    text = json.dumps(inspect(files[0]))
    for part in ("portability-test", "lora__a->b__meals->films__ported__pad", "demo", "eval_accuracy", "train_loss"):
        assert part in text, part
    assert "0.75" in text and "0.7" in text


def test_no_failure_of_the_tracker_reaches_a_run(tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    Tracker(TrackingSpec("offline", "p", blocked)).log_run(RECORD)
    assert "did not take run 0123456789abcdef" in caplog.text


def test_nothing_is_written_when_disabled(tmp_path):
    Tracker(TrackingSpec("disabled", "p", tmp_path)).log_run(RECORD)
    assert list(tmp_path.iterdir()) == []


def test_the_mode_is_resolved_once(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_mode("auto") == "offline" and resolve_mode("disabled") == "disabled"
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert resolve_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert resolve_mode("auto") == "offline"
    with pytest.raises(UserError, match="tracking.wandb"):
        resolve_mode("sometimes")
