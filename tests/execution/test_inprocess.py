"""The engine without processes: the same bits, and nothing is lost by an interruption."""

import _thread
import os
import threading

import numpy as np
import pytest

from portability.core.errors import UserError
from portability.execution.engines import ENGINES
from portability.execution.engines.base import Engine
from portability.execution.leases import Leases
from portability.planning.plan import plan
from portability.run import command
from portability.store import Store
from support.studies import small, wait_for
from support.tiny import CONF

COMMON = ("tracking.wandb=disabled", "yes=true", "similarity=false", "grid.inits=[ported,scratch]",
          "grid.seeds=[0]", "engine.workers=1")


def test_every_engine_has_a_file_in_conf_and_is_whole():
    assert sorted(ENGINES) == sorted(path.stem for path in (CONF / "engine").glob("*.yaml"))
    assert not any(engine.__abstractmethods__ for engine in ENGINES.values())
    for engine in ENGINES.values():  # workers one by one, or many at once
        own = {name for name in ("launch", "over", "start", "look")
               if getattr(engine, name) is not getattr(Engine, name)}
        assert own in ({"launch", "over"}, {"start", "look"})


@pytest.mark.system
def test_this_process_gives_the_bits_of_a_local_worker(data_folders, make_host, tmp_path):
    words = (f"results={tmp_path}", "method=prefix", *COMMON)
    one = small(data_folders, make_host, *words, "study=local")
    two = small(data_folders, make_host, *words, "study=here", "engine=inprocess", "engine.stack=1")
    assert command(one) == 0 and command(two) == 0
    there, here, runs = Store(tmp_path / "local"), Store(tmp_path / "here"), plan(one.grid).runs
    for run_id in runs:
        assert here.read(run_id)["train_info"]["metrics"] == there.read(run_id)["train_info"]["metrics"]
        mine, theirs = here.predictions(run_id), there.predictions(run_id)
        assert set(mine) == set(theirs) and all(np.array_equal(mine[key], theirs[key]) for key in mine)
    assert not Leases(here.root).all()


@pytest.mark.system
def test_an_interruption_keeps_checkpoints_and_the_next_command_goes_on(data_folders, make_host, tmp_path):
    study = small(data_folders, make_host, f"results={tmp_path}", "study=here", "method=lora",
                  "grid.budgets=[400]", *COMMON, "engine=inprocess", "grid.inits=[scratch]",
                  "grid.pairs=[[raw_base,raw_base]]")
    store = Store(tmp_path / "here")
    (run_id,) = (run_id for run_id, run in plan(study.grid).runs.items() if run.method)

    def interrupt():
        wait_for(lambda: any(stage.updates for stage in Leases(store.root).stages().values()))
        _thread.interrupt_main()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        command(study)
    thread.join()
    assert store.checkpoint(run_id) is not None and not Leases(store.root).all() and not store.has(run_id)
    assert command(study) == 0
    assert store.has(run_id) and store.checkpoint(run_id) is None


@pytest.mark.system
def test_a_run_that_takes_too_long_has_failed_and_a_full_disk_ends_the_command(
        data_folders, make_host, tmp_path, monkeypatch):
    words = (f"results={tmp_path}", "method=lora", "grid.budgets=[20000]", *COMMON, "engine=inprocess",
             "grid.inits=[scratch]", "grid.pairs=[[raw_base,raw_base]]", "grid.seeds=[0,1]")
    assert command(small(data_folders, make_host, *words, "study=late", "engine.timeout_minutes=0.03")) == 1
    failures = Store(tmp_path / "late").failures().values()
    assert [failure["kind"] for failure in failures] == ["TimedOut"] * 2
    assert "retry=failed" in next(iter(failures))["error"]

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(Store, "commit", full)
    with pytest.raises(UserError, match="cannot go on: No space left on device; finished runs are kept"):
        command(small(data_folders, make_host, *words, "study=full", "grid.budgets=[2]"))
    assert os.getpid() not in [claim.pid for claim in Leases(tmp_path / "full").all().values()]
