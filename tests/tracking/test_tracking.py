"""What was logged to W&B is read back from its own offline files, with its own reader."""

import json

import pytest

from portability.core.errors import UserError
from portability.tracking.runs import Tracker, TrackingSpec, entry_of, resolve_mode
from support.wandb_files import files, inspect

ID = "0123456789abcdef"
RECORD = {
    "run_id": ID, "spec": {"seed": 3, "method": {"name": "lora", "settings": {"r": 8}}, "origin": "fedc",
                              "init": {"kind": "ported"}},
    "cell": {"method": "lora", "host": "b", "data": "films", "init": "ported", "seed": 3,
             "origin": {"host": "a", "data": "meals"}},
    "port_info": {"name": "pad", "strategy": "pad", "carried_fraction": 1.0},
    "run_info": {"total_time": 1.5},
    "train_info": {"train_loss": [[10, 0.7], [20, 0.5]], "train_time": 1.25, "num_trainable_params": 48,
                   "file_size": 192, "tokens": 640,
                   "metrics": [{"updates": 0, "eval_accuracy": 0.5}, {"updates": 20, "eval_accuracy": 0.75}]},
}
NAME = entry_of(RECORD, []).id
AGAIN = RECORD | {"train_info": RECORD["train_info"] | {"metrics": [{"updates": 20, "eval_accuracy": 0.75}]}}


pytestmark = pytest.mark.usefixtures("no_home")


def offline(folder, project="portability-test", sweep="demo"):
    return Tracker(TrackingSpec("offline", project, folder, sweep))


def test_a_run_is_filed_under_its_cell_without_the_seed():
    how = entry_of(RECORD, ["demo"]).how
    assert how["group"] == "lora__a->b__meals->films__ported__pad" and how["job_type"] == "port"
    assert how["name"].endswith("__3") and set(how["tags"]) == {"lora", "ported", "b", "demo"}


@pytest.mark.parametrize(("kind", "report", "stage"), [
    ("extraction", {"seed_count": 32, "seconds": 1.0}, "extraction"), ("extracted", None, "extracted"),
    ("pissa", None, "extracted"), ("scratch", None, "scratch"), ("bare", None, "bare"),
    ("sampled", {"name": "pad"}, "port"),
])
def test_the_stage_is_that_of_the_init(kind, report, stage):
    record = RECORD | {"spec": RECORD["spec"] | {"init": {"kind": kind}}, "port_info": report}
    how = entry_of(record, []).how
    assert how["job_type"] == stage and how["group"].endswith("__pad") == (stage == "port")


@pytest.mark.system
def test_what_was_logged_offline_is_read_back(tmp_path):
    offline(tmp_path).log_run(RECORD)
    records = inspect(files(tmp_path)[NAME])
    run = next(record["run"] for record in records if record["type"] == "run")
    assert run["project"] == "portability-test" and run[
        "run_group"] == "lora__a->b__meals->films__ported__pad"
    assert run["job_type"] == "port" and set(run["tags"]) == {"lora", "ported", "b", "demo"}
    config = run["config"]["update"]
    assert config["spec"] == RECORD["spec"] and config["cell"] == RECORD["cell"] and config[
        "origin_run"] == "fedc"
    assert (config["pair"], config["relation"], config["method"]) == ("a -> b", "different", "lora")
    points = {r["history"]["item"]["_step"]: r["history"]["item"] for r in records if r["type"] == "history"}
    assert points[0]["eval_accuracy"] == 0.5 and points[10]["train_loss"] == 0.7 and points[20][
        "eval_accuracy"] == 0.75
    summary = {}
    for record in records:
        summary |= record.get("summary", {}).get("update", {})
    assert summary["eval_accuracy"] == 0.75 and summary["zero_shot_accuracy"] == 0.5 and summary[
        "trainable_params"] == 48
    assert [r["exit"]["exit_code"] for r in records if r["type"] == "exit"] == [0]


@pytest.mark.system
def test_the_same_record_is_logged_once_and_another_evaluation_of_the_run_as_another(tmp_path):
    for record in (RECORD, RECORD, AGAIN, AGAIN):
        offline(tmp_path).log_run(record)
    assert sorted(files(tmp_path)) == sorted([NAME, entry_of(AGAIN, []).id]) and NAME.startswith(f"{ID}-")
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 2


@pytest.mark.system
def test_another_project_gets_the_run_too(tmp_path):
    for project in ("one", "another", "one"):
        offline(tmp_path, project).log_run(RECORD)
    found = [inspect(file)[1]["run"] for file in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))]
    assert [(run["project"], run["run_id"]) for run in found] == [("one", NAME), ("another", NAME)]


@pytest.mark.system
def test_a_torn_memory_costs_only_that_the_run_is_sent_again(tmp_path):
    offline(tmp_path).log_run(RECORD)
    (tmp_path / "wandb" / "sent" / f"{NAME}.json").write_text('{"offline: ')
    assert offline(tmp_path).send(entry_of(RECORD, ["demo"]))
    assert not offline(tmp_path).send(entry_of(RECORD, ["demo"]))
    assert sorted(files(tmp_path)) == [NAME]


@pytest.mark.system
def test_what_a_killed_process_left_does_not_keep_a_run_from_being_sent_whole(tmp_path):
    torn = tmp_path / "wandb" / f"offline-run-20260101_000000-{NAME}"
    torn.mkdir(parents=True)
    (torn / f"run-{NAME}.wandb").write_bytes(b":W&B\xe1\xee\x00torn")
    offline(tmp_path).log_run(RECORD)
    assert sum(record["type"] == "history" for record in inspect(files(tmp_path)[NAME])) == 3


@pytest.mark.system
def test_what_is_known_of_a_run_later_resumes_it_without_its_curve(tmp_path):
    offline(tmp_path).log_run(RECORD)
    assert offline(tmp_path).send(entry_of(RECORD, ["demo"], {"gain_over_scratch": 0.25}))
    first, then = map(inspect, sorted(tmp_path.glob(f"wandb/offline-run-*-{NAME}*/*.wandb")))
    # `wandb sync` sends them in order, as one run
    assert first[1]["run"]["resume"] and then[1]["run"]["resume"]
    assert any(record["type"] == "history" for record in first)
    assert not any(record["type"] == "history" for record in then)
    assert '"gain_over_scratch":0.25' in json.dumps(then, separators=(",", ":"))


@pytest.mark.system
def test_no_failure_of_the_tracker_reaches_a_run(tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    Tracker(TrackingSpec("offline", "p", blocked)).log_run(RECORD)
    Tracker(TrackingSpec("online", "p", tmp_path)).log_run(RECORD)  # without a key
    Tracker(TrackingSpec("offline", "p", tmp_path)).log_run({"run_id": ID})
    assert caplog.text.count(f"did not take run {ID}") == 3


def test_nothing_is_written_when_disabled(tmp_path):
    Tracker(TrackingSpec("disabled", "p", tmp_path)).log_run(RECORD)
    assert list(tmp_path.iterdir()) == []


def test_the_mode_is_resolved_once(monkeypatch):
    assert resolve_mode("auto") == "offline" and resolve_mode("disabled") == "disabled"
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert resolve_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert resolve_mode("auto") == "offline"
    with pytest.raises(UserError, match="tracking.wandb"):
        resolve_mode("sometimes")


@pytest.mark.parametrize(("host", "server", "mode"), [
    ("api.wandb.ai", None, "online"), ("api.forge.coreweave.com", None, "online"),
    ("else.where", None, "offline"),
    ("else.where:8080", "http://else.where:8080", "online"),
    ("api.wandb.ai", "http://else.where:8080", "offline"),
])
def test_a_key_that_wandb_login_wrote_is_found_for_its_server_only(tmp_path, monkeypatch, host, server, mode):
    (tmp_path / "netrc").write_text(f"machine {host}\n  login user\n  password {'x' * 40}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if server:
        monkeypatch.setenv("WANDB_BASE_URL", server)
    assert resolve_mode("auto") == mode
