"""W&B beside a study in training: its own offline files are read half way, and whatever it does, records
stay."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from portability.planning.plan import plan
from portability.run import command
from portability.store import Store
from portability.tracking import beside
from portability.training.trainer import Trainer
from support.studies import small, wait_for
from support.wandb_files import inspect

pytestmark = pytest.mark.usefixtures("no_home")
QUICK = ("engine=inprocess", "yes=true", "method=lora", "grid.seeds=[0]",
         "grid.inits=[ported,sampled,scratch]", "grid.pairs=[[raw_base,tuned_base]]", "grid.budgets=[10,20]")


def histories(root):
    """What W&B's offline files hold now: name of the run -> its history by step, last run record and exit
    codes."""
    found = {}
    for path in sorted(root.glob("wandb/offline-run-*/*.wandb")):
        records = inspect(path)
        run = next((one["run"] for one in records if one["type"] == "run"), None)
        if run is not None:
            points = {one["history"]["item"]["_step"]: one["history"]["item"] for one in records
                      if one["type"] == "history"}
            summary = {}
            for one in records:
                summary |= one.get("summary", {}).get("update", {})
            codes = [one["exit"]["exit_code"] for one in records if one["type"] == "exit"]
            found.setdefault(run["display_name"], []).append((run, points, summary, codes))
    return found


def numbers(store):
    """All of a study's records but times, and the digests of the files beside them."""
    found = {}
    for record in store.records():
        train = {key: value for key, value in record["train_info"].items() if key != "train_time"}
        files = {name: one["sha256"] for name, one in record["files"].items() if name != "port_report.json"}
        found[record["run_id"]] = json.dumps([record["spec"], record["cell"], train, files], sort_keys=True)
    return found


@pytest.fixture(scope="module")
def untracked(data_folders, make_host, tmp_path_factory):
    """The study without a tracker."""
    study = small(data_folders, make_host, f"results={tmp_path_factory.mktemp('results')}", "study=s", *QUICK,
                  "tracking.wandb=disabled")
    assert command(study) == 0
    store = Store(study.results / "s")
    assert not (store.root / "wandb").exists() and not list((store.root / "running").iterdir())
    return numbers(store)


def tracked(data_folders, make_host, tmp_path, *words):
    return small(data_folders, make_host, f"results={tmp_path}", "study=s", *QUICK, "tracking.wandb=offline",
                 *words)


@pytest.mark.system
def test_curves_are_read_while_their_runs_train_and_are_whole_at_the_end(data_folders, make_host, tmp_path,
                                                                        caplog, monkeypatch):
    study = tracked(data_folders, make_host, tmp_path, "grid.budgets=[20,120]", "grid.inits=[scratch]")
    store, found, update = Store(tmp_path / "s"), {}, Trainer.update
    runs = plan(study.grid).runs

    def half_way():
        found.update(histories(store.root))
        return any(50 in points for parts in found.values() for _, points, *_ in parts)

    def waits(self, step, *rest):
        if step == 60 and not found:
            wait_for(half_way)
            assert not store.ids(), "it was done when it was read"
        update(self, step, *rest)

    monkeypatch.setattr(Trainer, "update", waits)
    monkeypatch.setattr(beside, "END_SECONDS", 300)  # on a machine at its limits
    monkeypatch.setattr(beside, "STUDY_SECONDS", 300)
    with caplog.at_level("INFO"):
        assert command(study) == 0
    name, points = next((name, points) for name, parts in found.items() for _, points, *_ in parts
                        if len(points) > 4)
    scored = [mark for mark in points if "eval_loss" in points[mark]]
    assert points[10].keys() >= {"train_loss", "learning_rate", "tokens_per_second"}
    whole = histories(store.root)
    (run, last, summary, codes), = whole[name]
    assert codes == [0] and all(last[step] == point for step, point in points.items())
    record = store.read(run["config"]["update"]["run_id"])
    assert scored == [mark["updates"] for mark in record["train_info"]["metrics"][:-1]]
    for step, loss in record["train_info"]["train_loss"]:
        assert last[step]["train_loss"] == loss
    for mark in record["train_info"]["metrics"]:
        assert {key: last[mark["updates"]][key] for key in mark if key != "updates"} == {
            key: value for key, value in mark.items() if key != "updates"}
    rate = runs[record["run_id"]].method.learning_rate
    assert last[10]["learning_rate"] == pytest.approx(rate / 2) and last[120]["learning_rate"] == rate
    assert 0 < last[10]["tokens_per_second"] < 1e9 and summary["updates"] == 120
    assert {"study:s", "method:lora", "arm:scratch"} <= set(run["tags"]) and run["job_type"] == "scratch"
    assert len(whole) == len(runs) + 1, "each run, and the study"
    (own, _, summary, _), = whole["s: verdict and gains"]
    assert own["project"] == "portability" and summary["cells_done"] and isinstance(summary["verdict"], str)
    said = next(line for line in caplog.messages if "runs filed" in line)
    assert f"W&B: {len(runs)} runs filed" in said and "s of CPU in a process of its own" in said, said


# ---- what W&B may do


FAULTS = {
    "hangs": "import time\ndef init(**_): time.sleep(3600)",
    "fails": "def init(**_): raise OSError(28, 'No space left on device')",
    "dies": "import os\ndef init(**_): os._exit(139)",
    "is away": "raise ImportError('no module of that name')",
}
# what hangs ends itself after END_SECONDS, or is killed 2 s later, if it was slow to start
SAID = {"hangs": "the study is whole without it", "dies": "ended with exit code 139",
        "fails": "left alone (it refused 5 times", "is away": "left alone (it refused 5 times"}


@pytest.mark.system
@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_a_tracker_does_the_records_are_the_same(fault, untracked, data_folders, make_host, tmp_path,
                                                          monkeypatch, caplog):
    broken = tmp_path / "path" / "wandb.py"
    broken.parent.mkdir()
    broken.write_text("class Settings:\n    def __init__(self, **_): pass\n" + FAULTS[fault])
    monkeypatch.setenv("PYTHONPATH", str(broken.parent), prepend=os.pathsep)
    monkeypatch.setattr(beside, "END_SECONDS", 4)
    before = set(psutil.Process().children())  # other tests call W&B in this process
    monkeypatch.setattr(beside, "send_study", lambda spec: None)
    assert command(tracked(data_folders, make_host, tmp_path)) == 0
    assert numbers(Store(tmp_path / "s")) == untracked and SAID[fault] in caplog.text
    assert not set(psutil.Process().children()) - before, "it is still there"


FULL = """#!/bin/sh
exec unshare -rm sh -c 'mount -t tmpfs -o size=96k tmpfs {folder} && exec {python} "$@"' - "$@"
"""


@pytest.mark.system
def test_a_tracker_whose_disk_is_full_changes_no_record(untracked, data_folders, make_host, tmp_path,
                                                        monkeypatch, caplog):
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).returncode:
        pytest.skip("no small disk can be had here")
    folder, program = tmp_path / "s" / "wandb", tmp_path / "python"
    folder.mkdir(parents=True)
    program.write_text(FULL.format(folder=folder, python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(beside, "sys", type("Sys", (), {"executable": str(program)}))
    monkeypatch.setattr(beside, "END_SECONDS", 300)  # on a machine at its limits
    monkeypatch.setattr(beside, "send_study", lambda spec: None)
    assert command(tracked(data_folders, make_host, tmp_path)) == 0
    assert numbers(Store(tmp_path / "s")) == untracked
    assert "No space left" in caplog.text and not list(Path(folder).iterdir())
