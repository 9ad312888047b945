"""A study in one file: its short forms say what files of conf would, and what is none is one sentence."""

import json

import pytest
import yaml

from portability.config.own import is_study_file, read_study, written
from portability.core.errors import UserError
from portability.planning.plan import plan
from portability.run import asked_for, compose
from support.tiny import CONF

KNOWN = {group: sorted(path.stem for path in (CONF / group).glob("*.yaml"))
         for group in ("host", "data", "method", "host_set", "engine", "protocol")}


@pytest.fixture
def spelled(tmp_path):
    """What a study's text says without short forms; its folder holds a host `small` and a set `films`."""
    for name in ("small", "large", "films"):
        (tmp_path / name).mkdir()

    def spelled(text):
        (tmp_path / "mine.yaml").write_text(text)
        return written(read_study(tmp_path / "mine.yaml"), tmp_path / "mine.yaml", KNOWN, "mine")

    return spelled


def test_hosts_stand_once_and_the_first_is_the_origin(spelled, tmp_path):
    found, replaced = spelled("hosts: {a: small, b: ./large}")
    hosts = {"a": {"path": f"{tmp_path}/small"}, "b": {"path": f"{tmp_path}/large"}}
    assert found == {"study": "mine", "host": hosts, "origin": {"host": "a"}, "receiving": "b",
                     "defaults": [{"override /host_set": "own"}, "_self_"]}
    assert replaced == {"host": {"a", "b"}, "data": set()}
    assert spelled("hosts: [small, large, nano-raw-base]")[0]["grid"] == {
        "pairs": [["small", "large"], ["small", "nano-raw-base"]]}
    one, _ = spelled("hosts: [large]\norigin: {module: small}")
    assert (one["receiving"], one["origin"]) == ("large", {"module": f"{tmp_path}/small"})
    asked, _ = spelled("hosts: [small, large]\norigin: large\nreceiving: small")
    assert (asked["origin"], asked["receiving"]) == ({"host": "large"}, "small")
    pairs, _ = spelled("hosts: [small, large]\ngrid: {pairs: [[large, small]]}")
    assert "origin" not in pairs and pairs["grid"] == {"pairs": [["large", "small"]]}


@pytest.mark.parametrize(("words", "entry"), [
    ("embedded:nano-raw-base", {"path": "embedded:nano-raw-base"}),
    ("package:a==1", {"path": "package:a==1"}), ("'${host_root}/a'", {"path": "${host_root}/a"}),
    ("owner/name@123", {"hub": "owner/name", "revision": "123"}),
    ("{hub: owner/name, revision: '1'}", {"hub": "owner/name", "revision": "1"}),
    ("{derive: {from: a, thinned: {layers: 2}}}", {"derive": {"from": "a", "thinned": {"layers": 2}}}),
])
def test_a_host_is_named_by_its_place(spelled, words, entry):
    assert spelled(f"hosts: {{a: small, b: {words}}}")[0]["host"]["b"] == entry


def test_data_stand_once_and_are_the_studys(spelled, tmp_path):
    found, replaced = spelled("data: {sst2: {train: a.csv, test: ../b.jsonl, labels: [x, y]}, nano_films:}")
    assert found["data"] == {"sst2": {"labels": ["x", "y"], "splits": {
        "train": f"{tmp_path}/a.csv", "validation": None, "test": f"{tmp_path.parent}/b.jsonl"}}}
    assert found["grid"] == {"data": ["sst2", "nano_films"]} and found["host_set"] == {"study_data": []}
    assert replaced["data"] == {"sst2"} and "defaults" not in found
    assert spelled("data: [films]\ngrid: {data: nano_films}")[0]["grid"] == {"data": "nano_films"}
    more, replaced = spelled("data: {sst2: {task: {template: '{text} ?'}}}")
    assert more["data"]["sst2"] == {"task": {"template": "{text} ?"}} and replaced["data"] == set()


def test_paths_of_entries_in_full_count_from_the_studys_folder_too(spelled, tmp_path):
    found, _ = spelled("host: {a: {path: small}, b: {path: 'embedded:b'}, c: }\n"
                       "method: {m: {from: large, r: 2}}")
    assert found["host"] == {"a": {"path": f"{tmp_path}/small"}, "b": {"path": "embedded:b"}, "c": None}
    assert found["method"] == {"m": {"from": f"{tmp_path}/large", "r": 2}}


def test_a_sweep_keeps_its_groups_and_its_paths_count_from_where_the_command_is_started(
    tmp_path, monkeypatch
):
    there = tmp_path / "here"
    (there / "small").mkdir(parents=True)
    monkeypatch.chdir(there)
    path = tmp_path / "mine/sweep/old.yaml"

    def found(**held):
        return written(held, path, KNOWN, None)

    full = {"host": {"a": {"path": "small"}}, "method": {"a": {"from": "small"}},
            "origin": {"module": "small"},
            "data": {"sst2": {"path": "reviews", "splits": {"test": "a.jsonl"}}, "other": None}}
    assert found(**full) == (full, {"host": set(), "data": set()})
    short, replaced = found(hosts=["./small"], methods={"a": "small"}, data={"sst2": {"train": "a.csv"}})
    assert short["host"] == {"small": {"path": f"{there}/small"}} and replaced["data"] == {"sst2"}
    assert short["method"] == {"a": {"from": f"{there}/small"}}
    assert short["data"]["sst2"]["splits"]["train"] == f"{there}/a.csv"
    assert short["grid"] == {"data": ["sst2"]} and short["host_set"] == {"study_data": []}


def test_an_embedded_host_in_a_list_is_that_of_conf(spelled):
    found, replaced = spelled("hosts: ['embedded:nano-raw-base', small]")
    assert found["origin"] == {"host": "nano-raw-base"} and list(found["host"]) == ["small"]
    assert replaced["host"] == {"small"}
    other, _ = spelled("hosts: ['embedded:elsewhere']")
    assert other["host"] == {"elsewhere": {"path": "embedded:elsewhere"}}


def test_methods_stand_once(spelled, tmp_path):
    found, _ = spelled("methods: {lora: , prefix: 1e-3, mine: {from: small, learning_rate: 0.1}, "
                       "other: owner/a}")
    assert found["defaults"] == [{"override /method": ["lora", "prefix"]}, "_self_"]
    assert found["method"] == {"prefix": {"learning_rate": 1e-3}, "other": {"from": "owner/a"},
                               "mine": {"from": f"{tmp_path}/small", "learning_rate": 0.1}}
    assert spelled("methods: [lora]\ndefaults: [full, _self_]")[0]["defaults"] == [
        {"override /method": ["lora"]}, "full", "_self_"]
    assert spelled("methods: [lora]\ndefaults: [{override /method: [prefix]}]")[0]["defaults"] == [
        {"override /method": ["prefix"]}]
    assert spelled("host_set: nano\nhosts: [nano-raw-base]")[0]["defaults"] == [
        {"override /host_set": "nano"}, "_self_"]


@pytest.mark.parametrize(("text", "says"), [
    ("hosts: {b: smal}", r"hosts.b in mine.yaml: 'smal' is no folder \(paths count from the file's own\)"),
    ("hosts: {a: owner/name}", "owner/name@REVISION of the hub with the 40 digits"),
    ("hosts: {a: 3}", "hosts.a in mine.yaml: 3 is no folder"),
    ("hosts: 3", "hosts in mine.yaml must be a mapping"),
    ("hosts: {nano-raw-bas: }", "name in hosts of mine.yaml 'nano-raw-bas'; .*mean 'nano-raw-base'"),
    ("hosts: [small, nano-raw-bas]", "name in hosts of mine.yaml 'nano-raw-bas'; .*mean 'nano-raw-base'"),
    ("hosts: {a: nano-raw-base}", "hosts.a in mine.yaml: conf has nano-raw-base: name it without more words"),
    ("hosts: [small, ../x/small]", "gives small, small and so one name twice"),
    ("data: {a: b.csv}", r"data.a in mine.yaml: b.csv is one file, .* write {train: b.csv, test: FILE}"),
    ("data: {a: {train: a.csv, splits: {}}}", "data.a in mine.yaml has splits, and train besides"),
    ("methods: {lora: true}", "methods.lora in mine.yaml must be a learning rate, the folder of an adapter"),
    ("methods: [lorra]", "unknown name in methods of mine.yaml 'lorra'; .*did you mean 'lora'"),
    ("host_set: nanno", "unknown host_set 'nanno'; .*mean 'nano'"),
    ("hostss: {a: small}", "unknown key in mine.yaml 'hostss'; .*did you mean 'hosts'"),
    ("hosts: {a: small, a: large}", "duplicate key a"), ("a: [", "mine.yaml: "), ("", "must hold a mapping"),
    ("[a]", "must hold a mapping of settings"), ("grid: 3\ndata: [films]", "grid must be a mapping, got 3"),
])
def test_what_is_no_study_is_one_sentence(spelled, text, says):
    with pytest.raises(UserError, match=says) as error:
        spelled(text)
    assert "\n" not in str(error.value)


def test_only_yaml_files_are_studies():
    assert [is_study_file(word) for word in ("a.yaml", "./b/c.yml", "+sweep=a.yaml", "full", "a.yam")] == [
        True, True, False, False, False]
    with pytest.raises(UserError, match=r"study file mine.yaml cannot be read: No such file or directory; "
                                        r"portability init mine.yaml writes one"):
        compose(["mine.yaml"])
    assert asked_for(["+sweep=mine.yaml", "+sweep=/home/me/mine.yaml"]) == ["+sweep=mine.yaml", "+sweep=PATH"]


@pytest.fixture
def own(tmp_path, make_host, data_folders):
    """A study in one file on tiny hosts, without its ending, and the same in files of conf."""
    hosts = {name: {"path": make_host("t5", 32, 2, 4, seed).source}
             for name, seed in (("one", 0), ("two", 1))}
    sets = {"sst2": {split: str(data_folders["one"] / f"{split}.jsonl") for split in ("train", "test")}}
    rest = {"study": "plain", "task": {"max_length": 48}, "grid": {"budgets": [2], "seeds": [0]}}
    folder = tmp_path / "my study's (1)"
    (folder / "conf").mkdir(parents=True)
    (folder / "mine.yaml").write_text(yaml.safe_dump(rest | {
        "hosts": {name: place["path"] for name, place in hosts.items()}, "data": sets,
        "methods": {"lora": 2e-3}}))
    for group, entries in (("host", hosts), ("data", {"films": {"path": None, "splits": sets["sst2"]}})):
        (folder / "conf" / group).mkdir()
        for name, entry in entries.items():
            (folder / "conf" / group / f"{name}.yaml").write_text(json.dumps({name: entry}))
    return folder


def test_a_study_in_one_file_is_the_study_that_files_of_conf_make(own):
    plain = compose(["--config-dir", str(own / "conf"), "host_set=own", "origin=one", "receiving=two",
                     "grid.data=films", "grid.study_data=[films]", "method=lora", "grid.seeds=[0]",
                     "method.lora.learning_rate=2e-3", "task.max_length=48", "grid.budgets=[2]"])
    short = compose([str(own / "mine.yaml")])
    assert plan(short.grid).runs.keys() == plan(plain.grid).runs.keys() and short.name == "plain"
    assert [source.name for source in short.sources] == ["sst2"]
    worded = compose([f"+sweep='{str(own / 'mine.yaml').replace(chr(39), chr(92) + chr(39))}'", "study=b"])
    assert plan(worded.grid).runs.keys() == plan(plain.grid).runs.keys() and worded.name == "b"


def test_a_study_without_data_or_hosts_says_what_to_write(own):
    for left_out, says in (("data", "names no data; say data: {NAME: {train: FILE, test: FILE}} in its file"),
                           ("hosts", "names no host for raw_base; name two under hosts in its file")):
        held = yaml.safe_load((own / "mine.yaml").read_text())
        del held[left_out]
        (own / "less.yaml").write_text(yaml.safe_dump(held | {"host_set": "own"}))
        with pytest.raises(UserError, match=says):
            compose([str(own / "less.yaml")])


def test_a_limit_takes_few_examples_and_lies_apart(own):
    file = str(own / "mine.yaml")
    whole, few = compose([file]), compose([file, "--limit", "30"])
    assert few.name == "plain-limit-30" and few.data.counts["sst2"]["train"] == 30
    assert (few.grid.eval.limit, few.grid.data[0].counts["eval"]) == (30, 30)
    assert not plan(whole.grid).runs.keys() & plan(few.grid).runs.keys()
    again = compose([file, "eval.limit=30", "grid.train_examples=30"])
    assert plan(again.grid).runs.keys() == plan(few.grid).runs.keys()
    held = compose([file, "+data.sst2.train_examples=90", "--limit=30"])
    assert held.data.counts["sst2"]["train"] == 30
    bounds = [file, "grid.train_examples=6", "eval.limit=7", "--limit=30"]
    fewer = compose([*bounds, "+data.sst2.train_examples=5"])
    assert (fewer.data.counts["sst2"]["train"], fewer.grid.eval.limit) == (5, 7)
    assert compose([*bounds, "+data.sst2.train_examples=null"]).data.counts["sst2"]["train"] == 6
    with pytest.raises(UserError, match="grid holds 3"):
        compose([file, "grid=3", "--limit=30"])
    for count in ("0", "-1", "few", "1.5"):
        with pytest.raises(UserError, match="--limit: must be a whole number of examples from 1 on, got"):
            compose([file, f"--limit={count}"])
