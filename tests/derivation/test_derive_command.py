"""The command `portability derive`, with a folder of recipes: the folder that it names, or one sentence."""

import json
from pathlib import Path

import pytest

from portability.config.compose import composed, options
from portability.config.study import _derived, checked
from portability.core.errors import UserError
from portability.derive import main
from portability.hosts.recipes import Continued, kind_of
from portability.planning.study import facts
from support.studies import study

pytestmark = pytest.mark.unit
RECIPES = {
    "thin": "{derive: {from: nano-raw-large, thinned: {layers: 2}}}",
    "rough": "{derive: {from: thin, noised: {share: 0.1}}}",
    "own": "{derive: {from: own, hidden: {}}}",
    "one": "{derive: {from: other, hidden: {}}}",
    "other": "{derive: {from: tasks-base, noised: {like: one}}}",
    "placed": "{path: 'embedded:tasks-base', derive: {from: tasks-base, hidden: {}}}",
    "orphan": "{derive: {from: tasks-bas, hidden: {}}}",
}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.setenv("PORTABILITY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mine" / "host").mkdir(parents=True)
    for name, recipe in RECIPES.items():
        (tmp_path / "mine" / "host" / f"{name}.yaml").write_text(f"{name}: {recipe}\n")
    return ["--config-dir", str(tmp_path / "mine")]


def test_a_host_is_made_with_those_it_is_made_from_and_a_study_takes_it(mine, capsys):
    words = ["grid.pairs=[[rough,nano-raw-base]]", *mine]
    with pytest.raises(UserError, match="make it once: portability derive thin"):
        study(*words)
    assert main([*mine, "rough"]) == 0
    name, _, folder = capsys.readouterr().out.strip().partition(": ")
    assert name == "rough" and json.loads((Path(folder) / "derived.json").read_text())["from"] == "thin"
    [(origin, _)] = (planned := study(*words)).grid.pairs
    assert (origin.name, origin.source, origin.shape.layers["decoder"]) == ("rough", folder, 2)
    assert facts(planned, None)["derived"]["rough"]["changes"][0] == "thinned"
    assert "derived" not in facts(study("method=lora"), None)


@pytest.mark.parametrize(("words", "said"), [
    (["own"], "host 'own' is derived from itself (own from own): name another parent (host.own.derive)"),
    (["one"], "host 'one' is derived from itself (one from other from one)"),
    (["placed"], "host 'placed': give one place, not path and derive"),
    (["orphan"], "did you mean 'tasks-base'?"),
    (["tasks-base"], "host 'tasks-base' is not derived from another"),
    (["thin", "host.thin.derive.thinned.layers=99"], "thinned.layers must be from 2 to"),
])
def test_what_cannot_be_made_is_one_sentence(mine, words, said, capsys):
    assert main([*mine, *words]) == 2
    told = capsys.readouterr()
    assert said in told.err and told.err.count("\n") == 1 and not told.out


def test_a_command_without_a_host_makes_nothing(mine, capsys):
    assert main([*mine, "data_root=/tmp"]) == 2 and "name a host to make" in capsys.readouterr().err


def test_a_manifest_says_how_a_host_came_to_be_and_names_no_users_folder():
    conf = checked(composed(options([])))
    assert _derived(conf, "smollm2-20-layers-healed") == {
        "from": "smollm2-135m-instruct", "changes": ["thinned", "continued on mds_books"], "updates": 120}
    assert _derived(conf, "nano-raw-base") == {}
    assert kind_of(Continued("~/train.jsonl", 1)) == "continued on train"
