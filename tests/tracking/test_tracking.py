"""What was logged to W&B is read back from its own offline files, with its own reader."""

import json

import pytest

from portability.core.errors import UserError
from portability.tracking.entries import entry_of, filing_of
from portability.tracking.runs import Tracker, TrackingSpec, resolve_mode
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


def offline(folder, project="portability-test"):
    return Tracker(TrackingSpec("offline", project, folder))


def send(folder, record=RECORD, **how):
    return offline(folder, **how).send(entry_of(record, ["demo"], study="mine"))


CELL = "lora__a->b__meals->films__ported__pad"
TAGS = {"study:mine", "method:lora", "origin:a", "receiving:b", "relation:different", "arm:ported",
        "sweep:demo"}


def test_a_run_is_filed_under_its_study_and_its_cell_without_the_seed():
    how = entry_of(RECORD, ["demo"], study="mine").how
    assert how["group"] == f"mine__{CELL}" and how["name"] == f"{CELL}__3" and set(how["tags"]) == TAGS
    assert entry_of(RECORD).how["group"] == CELL


def test_before_it_trains_a_run_is_filed_as_its_record_will_be():
    heading = {name: RECORD[name] for name in ("run_id", "spec", "cell", "port_info")}
    entry = entry_of(RECORD, ["demo"], study="mine")
    filing = filing_of(heading, "mine", ["demo"])
    assert (filing.how, filing.config) == (entry.how, entry.config)


@pytest.mark.parametrize("kind", ["ported", "sampled", "scratch", "extraction", "bare"])
def test_arms_are_told_apart_by_job_type_and_by_tag(kind):
    cell = RECORD["cell"] | {"init": f"{kind}_by_name"}
    how = entry_of(RECORD | {"spec": RECORD["spec"] | {"init": {"kind": kind}}, "cell": cell}).how
    assert how["job_type"] == kind and f"arm:{kind}_by_name" in how["tags"]


def test_what_starts_from_nothing_has_no_origin_and_no_relation_and_long_names_are_cut():
    how = entry_of(RECORD | {"cell": RECORD["cell"] | {"origin": None, "host": "h" * 200}}).how
    assert not any(tag.startswith(("origin:", "relation:")) for tag in how["tags"])
    assert max(map(len, how["tags"])) == 64 and len(how["group"]) == 128  # W&B takes no more


@pytest.mark.system
def test_what_was_logged_offline_is_read_back(tmp_path):
    send(tmp_path)
    records = inspect(files(tmp_path)[NAME])
    run = next(record["run"] for record in records if record["type"] == "run")
    assert run["project"] == "portability-test" and run["run_group"] == f"mine__{CELL}"
    assert run["job_type"] == "ported" and set(run["tags"]) == TAGS
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
        send(tmp_path, record)
    assert sorted(files(tmp_path)) == sorted([NAME, entry_of(AGAIN, []).id]) and NAME.startswith(f"{ID}-")
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 2


@pytest.mark.system
def test_another_project_gets_the_run_too(tmp_path):
    for project in ("one", "another", "one"):
        send(tmp_path, project=project)
    found = [inspect(file)[1]["run"] for file in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))]
    assert [(run["project"], run["run_id"]) for run in found] == [("one", NAME), ("another", NAME)]


@pytest.mark.system
def test_a_torn_memory_costs_only_that_the_run_is_sent_again(tmp_path):
    send(tmp_path)
    (tmp_path / "wandb" / "sent" / f"{NAME}.json").write_text('{"offline: ')
    assert send(tmp_path) and not send(tmp_path)
    assert sorted(files(tmp_path)) == [NAME]


@pytest.mark.system
def test_what_a_killed_process_left_does_not_keep_a_run_from_being_sent_whole(tmp_path):
    torn = tmp_path / "wandb" / f"offline-run-20260101_000000-{NAME}"
    torn.mkdir(parents=True)
    (torn / f"run-{NAME}.wandb").write_bytes(b":W&B\xe1\xee\x00torn")
    send(tmp_path)
    assert sum(record["type"] == "history" for record in inspect(files(tmp_path)[NAME])) == 3


@pytest.mark.system
def test_what_is_known_of_a_run_later_resumes_it_without_its_curve(tmp_path):
    send(tmp_path)
    assert offline(tmp_path).send(entry_of(RECORD, ["demo"], {"gain_over_scratch": 0.25}))
    first, then = map(inspect, sorted(tmp_path.glob(f"wandb/offline-run-*-{NAME}*/*.wandb")))
    # `wandb sync` sends them in order, as one run
    assert first[1]["run"]["resume"] and then[1]["run"]["resume"]
    assert any(record["type"] == "history" for record in first)
    assert not any(record["type"] == "history" for record in then)
    assert '"gain_over_scratch":0.25' in json.dumps(then, separators=(",", ":"))


@pytest.mark.system
def test_the_error_of_a_failed_attempt_is_taken_away_by_a_later_one(tmp_path):
    tracker, entry = offline(tmp_path), entry_of(RECORD, ["demo"], study="mine")
    filing = filing_of(RECORD, "mine", ["demo"])
    tracker.leave(ID, tracker.begin(ID, filing), "boom")
    tracker.finish(tracker.begin(ID, filing), entry)
    first, then = map(inspect, sorted(tmp_path.glob("wandb/offline-run-*/*.wandb")))
    assert first[1]["run"]["run_id"] == then[1]["run"]["run_id"]
    assert any("boom" in json.dumps(record.get("summary", {})) for record in first)
    assert any("error" in json.dumps(record["summary"].get("remove", "")) for record in then
               if "summary" in record)


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
