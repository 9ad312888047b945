"""The one test of `make test` that starts a process: a small study from the command to a table."""

from pathlib import Path

import pytest

from portability.analyze import main as analyze
from portability.planning.plan import plan
from portability.run import command, compose
from portability.store import Store


@pytest.mark.smoke
def test_the_smoke_sweep_goes_from_the_command_through_a_worker_to_a_table(tmp_path: Path):
    study = compose(["+sweep=smoke", f"results={tmp_path}", "tracking.wandb=disabled", "engine.workers=1",
                     "yes=true", "grid.seeds=[0]"])
    assert command(study) == 0
    store, planned = Store(tmp_path / study.name), plan(study.grid)
    assert all(store.has(run_id, marks) for run_id, marks in planned.marks.items()) and not store.failures()
    assert analyze([str(store.root), "--quiet"]) == 0
    report = (store.root / "report.md").read_text()
    assert all(init.name in report for init in study.grid.inits)
