"""Configuration: every file composes, and what is wrong is said in one sentence."""

import math
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from portability.analysis.stats.blocks import build_blocks
from portability.analysis.stats.pairing import pairs_of
from portability.config.schema import KEYS
from portability.core.errors import UserError
from portability.planning.plan import plan
from portability.planning.study import facts
from portability.run import compose, main
from support.studies import command, small, study
from support.tiny import CONF

SWEEPS = sorted(path.stem for path in (CONF / "sweep").glob("*.yaml"))


def size(grid):
    """Number of cells: the product of the axes, zero-shot and bare hosts not counted."""
    return math.prod(map(len, (grid.methods, grid.rates, grid.pairs, grid.data, grid.relations, grid.inits,
                               grid.ports, grid.seeds, grid.budgets)))


def test_every_option_of_every_group_composes():
    got = study("mode=plan")
    assert size(got.grid) == 4 * 1 * 1 * 3 * 1 * 3 * 2 and got.mode == "plan"
    for group in ("method", "host", "data", "init", "port"):
        assert list((CONF / group).glob("*.yaml")), group


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_composes_and_plans(name, data_folders, make_host):
    text, roots = (CONF / "sweep" / f"{name}.yaml").read_text(), ["host_root=/h", "data_root=/d"]
    if "host_root=" in text or "host_set: minilm" in text or "host_set: smollm2" in text:
        shared = Path(__file__).parents[3] / "shared"
        if not shared.is_dir():
            pytest.skip("needs ../shared with real hosts and sentiment sets")
        roots = [f"host_root={shared}/hosts", f"data_root={shared}/data"]
    if "host_set: smollm2" in text:  # hosts out of a package, and derived ones, which take minutes
        names = sorted(path.stem for path in (CONF / "host").glob("smollm2-*.yaml"))
        for number, host in enumerate(names):
            folder = make_host("llama", hidden=16, layers=1 + number)
            roots.append(f"host.{host}={{path: {folder.source}, package: null, version: null, derive: null}}")
    got = study(f"+sweep={name}", *roots)
    planned = [cell for cell in plan(got.grid).cells if cell.budget > 0]
    assert got.name != "single" and len(planned) == size(got.grid) or got.grid.exclude and planned


def test_precision_is_part_of_a_runs_identity_and_how_the_work_is_done_is_not():
    plain = set(plan(study("method=lora").grid).runs)
    engine = ("engine.workers=7", "engine.stack=1", "engine.device=cpu", "engine.checkpoint_seconds=0",
              "engine.device_map={model.embed_tokens: 0, lm_head: cuda:1}")
    assert set(plan(study("method=lora", *engine).grid).runs) == plain
    assert not set(plan(study("method=lora", "precision=bf16").grid).runs) & plain


@pytest.mark.parametrize(("name", "sizes"), [("full", [4, 4, 2, 3, 3, 5]),
                                             ("all_pairs", [4, 12, 1, 3, 1, 10])])
def test_the_studys_sweeps_have_1440_cells(name, sizes):
    got = study(f"+sweep={name}")
    axes = (got.grid.methods, got.grid.pairs, got.grid.relations, got.grid.inits, got.grid.budgets,
            got.grid.seeds)
    assert [len(axis) for axis in axes] == sizes and size(got.grid) == 1440
    assert len({(one.name, other.name) for one, other in got.grid.pairs}) == sizes[1]


def test_an_axis_is_narrowed_and_extended_on_the_command_line_and_adds_only_its_own_runs():
    whole, seeds = (plan(study("+sweep=full", *more).grid) for more in ((), ("grid.seeds=[0,1,2,3,4,5]",)))
    assert set(whole.runs) < set(seeds.runs)
    assert {run.seed for run_id, run in seeds.runs.items() if run_id not in whole.runs} == {5}
    few = plan(study("+sweep=full", "grid.pairs=[[raw_base,tuned_base]]", "method=lora", "grid.budgets=[200]",
                     "primary=[]").grid)
    assert set(few.runs) < set(whole.runs) and {cell.method for cell in few.cells} == {"lora"}
    fewer_updates = plan(study("+sweep=full", "grid.budgets=[50]", "primary=[]").grid)
    # another protocol
    assert not {r for r in fewer_updates.runs if fewer_updates.runs[r].method} & set(whole.runs)


def test_the_host_set_chooses_who_plays_the_roles(data_folders, make_host):
    assert [[host.name for host in pair] for pair in study("+sweep=smoke").grid.pairs] == [["nano-raw-base",
                                                                                            "nano-tuned-base"]]
    mine = study("+sweep=smoke", "host_set.roles.tuned_base=nano-other-base")
    assert [host.name for host in mine.grid.pairs[0]] == ["nano-raw-base", "nano-other-base"]
    named = study("+sweep=smoke", "grid.pairs=[[nano-tuned-large,raw_base]]")
    assert [host.name for host in named.grid.pairs[0]] == ["nano-tuned-large", "nano-raw-base"]


@pytest.mark.system
def test_without_the_hub_the_study_on_t5s_says_so_at_once_and_names_the_embedded_hosts(tmp_path):
    started = time.monotonic()
    done = command("+sweep=full", "host_set=t5", cwd=tmp_path, HF_HUB_OFFLINE="")
    if done.returncode == 0 or "to do" in done.stderr:
        pytest.skip("the hub answers here")
    assert done.returncode == 2 and "host_set=nano" in done.stderr and time.monotonic() - started < 15
    assert not list(tmp_path.iterdir()), "something was started before the hub was asked for"


@pytest.mark.parametrize(("value", "words"), [
    ("shard=3/2", "shard must be i/n"), ("shard=0/2", "shard must be i/n"),
    ("shard=two", "shard must be i/n"),
    ("only={metod: lora}", "unknown column in only 'metod'; choose one of: .*method"),
    ("only=lora", "only must map columns"), ("retry=maybe", "unknown retry 'maybe'; choose one of: died, "
                                             "failed"),
    ("engine.timeout_minutes=0", "engine.timeout_minutes must be above 0"),
    ("host_set.roles.tuned_base=null", "host set 'nano' has no tuned_base: narrow grid.pairs"),
    ("host_set.sets.main=null", "host set 'nano' names no data set"),
    ("yes=no", "yes must be true or false, got 'no'"),
    ("only=0", "only must map columns"), ("grid.relations=null", "grid.relations must be a mapping"),
    ("grid=null", "grid must be a mapping"), ("host_set.roles=null", "host_set.roles must be a mapping"),
    ("grid.seeds=[a]", "grid.seeds.0 must be a whole number such as 16, got 'a'"),
])
def test_a_part_that_makes_no_sense_is_one_clear_sentence(value, words):
    with pytest.raises(UserError, match=words):
        study(value)


@pytest.mark.parametrize(("override", "words"), [
    ("origin=nano-raw-bas", "unknown host 'nano-raw-bas'; choose one of: .*nano-raw-base"),
    ("grid.data=nano_film", "unknown data 'nano_film'; choose one of: .*; did you mean 'nano_films'"),
    ("grid.study_data=[nope]", "unknown data 'nope'; choose one of: .*nano_films"),
    ("grid.inits=[portd]", "unknown init 'portd'; choose one of: .*ported"),
    ("grid.ports=[pad2]", "unknown port 'pad2'; choose one of: .*pad"),
    ("grid.overlap=maybe", "unknown grid.overlap 'maybe'"),
    ("mode=dance", "unknown mode 'dance'; choose one of: plan, run, status"),
    ("precision=fp8", "unknown precision 'fp8'; choose one of: bf16, fp32"),
    ("engine.device=tpu", "unknown engine.device 'tpu'; choose one of: auto, cpu, cuda"),
    ("engine.checkpoint_seconds=-1", "engine.checkpoint_seconds must be at least 0"),
    ("grid.budgets=[0,50]", "grid.budgets.0 must be at least 1, got 0"),
    ("grid.budgets=[50,50]", "none twice"),
    ("grid.seeds=[]", "at least one value"),
    ("task.template=hello", "exactly once"),
    ("task.label_words=[yes]", "task.label_words must name from 2 to 128 words, got"),
    ("train.batch_size=0", "train.batch_size must be at least 1"),
    ("method.lora.learning_rate=nan", "method.lora.learning_rate must be a finite number, got nan"),
    ("method.lora.settings.alpha=inf", "method.lora.settings.alpha must be a finite number, got inf"),
    ("train.betas=[0.9,-inf]", "train.betas.1 must be a finite number, got -inf"),
    ("method.lora.learning_rate=-0.1", "method.lora.learning_rate must be at least 0, got -0.1"),
    ("train.head_learning_rate=-1", "train.head_learning_rate must be at least 0, got -1"),
    ("method.lora.settings.r=0", "method.lora.settings.r must be a whole number from 1 on, got 0"),
    ("method.lora.settings.r=-2", "method.lora.settings.r must be a whole number from 1 on, got -2"),
    ("engine.workers=0", "engine.workers must be at least 1"),
    ("engine.stack=0", "engine.stack must be at least 1"),
    ("engine.device_map=even", "engine.device_map must be auto, or a device for every module, as in"),
    ("eval.batch_size=0", "eval.batch_size must be at least 1"),
    ("grid.origin_updates=-5", "grid.origin_updates must be at least 1, got -5"),
    ("method=[]", "no method is chosen; choose of: adalora, adapter, "),
    ("train.batch_size=many", "train.batch_size must be a whole number such as 16, got 'many'"),
    ("train.tail=0.6", "at most 0.5"),
    ("grid.pairs=[[nano-raw-base]]", "grid.pairs.0 has too few values"),
    ("train.betas=[0.9]", "train.betas has too few values"),
    ("origin=[]", r"origin.host must be a string, got \[\]"), ("study=[a]", r"study must be a string, got "
                                                           r"\['a'\]"),
    ("task.label_words=[a,b,c]", r"'nano_films' has 2 labels \(0, 1\) and 3 label words \(a, b, c\)"),
    ("task.template='{text} {text_pair}'", "data set 'nano_films' has single texts, and its template"),
    ("+data.nano_films.labels=[no,true]", "data.nano_films.labels"),
    ("~mode=plan", "mode is run"),
    ("grid.rates=[0]", "grid.rates.0 must be above 0, got 0"),
    ("similarity=3", "similarity must be true or false, got 3"),
    ("+grid.rounds=3", "unknown key in grid 'rounds'"),
    ("+method.lora.rate=3", "unknown key in method.lora 'rate'"),
    ("host.nano-raw-base.path=/nowhere", "no config.json in /nowhere"),
    ("data.nano_films.path=/nowhere", "/nowhere"),
])
def test_bad_values_are_one_clear_sentence(override, words):
    with pytest.raises(UserError, match=words):
        study(override)


CONTRAST = "name: a, arm: ported, baseline: scratch, budget: 50"


@pytest.mark.parametrize(("value", "words"), [
    ("{name: a, arm: portd, baseline: scratch, budget: 50}", "unknown arm of primary 'a' 'portd'; choose one "
     "of: ported"),
    ("{name: a, arm: ported, baseline: ported, budget: 50}", "unknown baseline of primary 'a' 'ported'"),
    ("{name: a, arm: ported, baseline: scratch, budget: 51}", "ported after 51 updates, and the grid has it "
     "after 0, 50"),
    ("{name: a, arm: ported, baseline: bare, budget: 50}", "bare after 50 updates, and the grid has it after "
     "0"),
    (f"{{{CONTRAST}, of: {{method: lor}}}}", "unknown method of primary 'a' 'lor'; choose one of: adapter"),
    (f"{{{CONTRAST}, of: {{colour: red}}}}", "unknown coordinate in primary 'a' 'colour'"),
    (f"{{{CONTRAST}, of: {{pairs: apart}}}}", "unknown pairs of primary 'a' 'apart'; choose one of: lineage, "
     "size"),
    (f"{{{CONTRAST}, of: {{origin: raw_base, receiving: raw_base}}}}", "primary 'a' has no cell"),
    (f"{{{CONTRAST}, less: {{pairs: size}}}}", "takes the same cells on both sides"),
    (f"{{{CONTRAST}}}, {{{CONTRAST}}}", "a name that no other contrast has, got 'a'"),
    (f"{{{CONTRAST}, test: t}}", "unknown key in primary.0. 'test'"),
    ("{name: a, arm: ported, baseline: scratch}", r"primary\[0\].budget is missing"),
    (", ".join(f"{{name: {i}{CONTRAST[7:]}}}" for i in "abcdefghi"), "declares 9 contrasts, and at most 8 "
     "can be"),
])
def test_a_primary_contrast_that_the_grid_lacks_is_one_clear_sentence(value, words):
    with pytest.raises(UserError, match=words):
        study("+sweep=full", f"primary=[{value}]")


def test_contrasts_name_methods_at_a_rate_where_there_are_several():
    several, of = ("+sweep=full", "grid.rates=[1,3]"), "of: {method: [lora, lora x3]}"
    assert study(*several, f"primary=[{{{CONTRAST}, {of}}}]").primary[0].of == {"method": ["lora", "lora x3"]}
    with pytest.raises(UserError, match="would pool the rates of grid.rates; name its methods: adapter, "
                       "adapter x3"):
        study(*several, f"primary=[{{{CONTRAST}}}]")
    with pytest.raises(UserError, match="unknown method of primary 'a' 'lora'"):
        study("+sweep=full", "grid.rates=[3]", f"primary=[{{{CONTRAST}, of: {{method: lora}}}}]")


def test_primary_contrasts_are_facts_of_the_study_and_change_no_run():
    of = "of: {pairs: lineage, origin: [raw_base, tuned_base]}, less: {pairs: size}"
    got = study("+sweep=full", f"primary=[{{{CONTRAST}, {of}}}]")
    plain = study("+sweep=full")
    assert set(plan(got.grid).runs) == set(plan(plain.grid).runs)
    assert len(facts(plain, "full")["primary"]) == 6 and facts(got, "full")["primary"] == [{
        "name": "a", "arm": "ported", "baseline": "scratch", "budget": 50, "less": {"pairs": ["size"]},
        "of": {"pairs": ["lineage"], "origin": ["nano-raw-base", "nano-tuned-base"]}}]
    kinds = [kind for *_, kind in facts(got, "full")["pairs"]]
    assert kinds == ["lineage", "lineage", "size", "size"]
    assert [kind for *_, kind in facts(study("+sweep=demo"), "demo")["pairs"]] == ["lineage", "size", "apart"]


def test_the_metric_that_decides_is_a_fact_of_the_study_and_changes_no_run():
    asked = ("+sweep=full", "eval.metrics=[accuracy,auc]")
    got, plain = study(*asked, "primary_metric=auc"), study(*asked)
    assert facts(got, "full") == facts(plain, "full") | {"primary_metric": "auc"}
    assert set(plan(got.grid).runs) == set(plan(plain.grid).runs)
    with pytest.raises(UserError, match=r"unknown primary_metric .of eval.metrics. 'auk'.*mean 'auc'"):
        study(*asked, "primary_metric=auk")
    with pytest.raises(UserError, match=r"unknown primary_metric \(of eval.metrics\) 'auc'"):
        study("+sweep=full", "eval.metrics=[accuracy]", "primary_metric=auc")


@pytest.mark.parametrize(("override", "words"), [
    ("methd=lora", "unknown key 'methd'; .*did you mean 'method'"), ("swep=full", r"did you mean '\+sweep'"),
    ("+swep=full", "unknown key 'swep'; .*did you mean 'sweep'"), ("grdi.seeds=[1]", "did you mean 'grid'"),
    ("grid.seed=[0]", "unknown key in grid 'seed'; .*did you mean 'seeds'"),
    ("seeds=[0]", "did you mean 'grid.seeds'"),
    ("train.batchsize=3", "unknown key in train 'batchsize'; .*did you mean 'batch_size'"),
    ("method.lora.rnak=4", "unknown key in method.lora 'rnak'"), ("mode.x=4", "mode holds 'run' and no keys"),
    ("~grid.relations.sam", "unknown key in grid.relations 'sam'; .*did you mean 'same'"),
    ("method=loraa", "unknown method 'loraa'; .*did you mean 'lora'"),
    ("method=[lorra]", "did you mean 'lora'"),
    ("+sweep=ful", "unknown sweep 'ful'; .*did you mean 'full'"), ("host_set=nanno", "did you mean 'nano'"),
    ("engine=lcal", "unknown engine 'lcal'; .*did you mean 'local'"),
    ("engine=null", "unknown engine 'None'"), ("mode=plna", "unknown mode 'plna'; .*did you mean 'plan'"),
])
def test_a_typo_is_refused_and_what_was_meant_is_named(override, words):
    with pytest.raises(UserError, match=words):
        study(override)


@pytest.mark.parametrize(("override", "words"), [
    ("+method=lora", "is written method=lora"), ("sweep=full", r"is written \+sweep=full"),
    ("+mode=plan", "is written mode=plan"),
    ("host=nano-raw-base", "chooses nothing.*origin=NAME"), ("+data=nano_films", "chooses "
                                                             "nothing.*grid.data"),
    ("grid.seeds=[0,1", r"cannot read 'grid.seeds=\[0,1'"), ("task.template='a", "cannot read"),
    ("tracking.wandb=offlin", "unknown tracking.wandb 'offlin'; .*; did you mean 'offline'"),
    ("demo", r"cannot read 'demo': a setting is key=value; did you mean '\+sweep=demo'"),
    ("engine=[local,ray]", "chooses several of engine, which takes one: engine=NAME"),
    ("~mode", "mode is missing"), ("method.lora=3", "method.lora must be a mapping"),
    ("task=null", "task must be a mapping"),
    ("host.nano-raw-base=3", "host.nano-raw-base must be a mapping"),
    ("grid.seeds=${x}", r"'\$\{x\}' stands for a key, and there is no 'x'"),
    ("host_set.roles=[a]", "host_set.roles must be a mapping"),
    ("grid.exclude={a: b}", r"grid.exclude must be a list, got .*; type 'grid.exclude=\[\{a: b\}\]'"),
    ("primary={a: b}", "primary must be a list, got"), ("grid.seeds={a: 1}", "grid.seeds must be a list"),
    ("grid.seeds.9=5", "give the whole of it, as in 'grid.seeds="),
    ("~method", "'~method' takes nothing out"), ("study=???", r"'study' is \?\?\?, which stands for a value"),
])
def test_words_that_would_be_passed_over_or_cannot_be_read_are_refused(override, words):
    with pytest.raises(UserError, match=words) as raised:
        study(override)
    assert "\n" not in str(raised.value)


def test_all_keys_of_a_configuration_are_known():
    told = yaml.safe_load((CONF / "config.yaml").read_text())
    groups = {next(iter(entry)) for entry in told.pop("defaults") if isinstance(entry, dict)}
    groups.discard("protocol")  # its files set keys of the others
    assert {*told, *groups, "host", "data", "init", "port"} == set(KEYS)


@pytest.mark.parametrize("words", [
    ("-m", "study=a,b"), ("--multirun", "grid.seeds=0,1"), ("study=a,b",), ("grid.seeds=range(3)",), ("-m",),
    ("hydra.mode=MULTIRUN", "study=a,b"), ("hydra.sweep.dir=x",),
])
def test_several_values_are_refused_and_an_axis_is_named(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out, err = said(monkeypatch, capsys, 2, *words, "mode=plan")
    assert err.startswith("portability: ") and err.count("\n") == 1
    assert "as in 'grid.seeds=[0,1]'" in err and out == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("words", "code", "told"), [
    (["--hydra-help"], 2, "no option --hydra-help"), (["--info"], 2, "no option --info"),
    (["-r"], 2, "no option -r"),
    (["--shell-completion", "install=bash"], 2, "no option --shell-completion"),
    (["--config-name=x"], 2, "no option --config"),
    (["--resolve", "mode=plan"], 2, "add --cfg job"), (["-p", "grid"], 2, "add --cfg job"),
    (["-cd"], 2, "expected one"),
    (["--cfg", "jb"], 2, "unknown --cfg 'jb'; choose one of: job"), (["--config-dir=/none", "mode=plan"], 2,
                                                   "/none: there is no such folder"),
    (["--help"], 0, "portability run +sweep=demo"), (["--version"], 0, "portability 0."),
    (["-c", "job", "-p", "grd"], 2, "did you mean 'grid'"),
    (["-c", "job", "-p", "grid", "grid.seeds=[7]", "--resolve"], 0, "data: nano_films\nrelations:\n  same: "
     "self\n"),
    (["--cfg", "job", "-p", "grid.data", "--resolve"], 0, "nano_films\n"),
])
def test_options_work_or_are_refused_in_one_sentence(words, code, told, monkeypatch, capsys):
    out, err = said(monkeypatch, capsys, code, *words)
    assert told in (err if code else out)
    assert (out, err.count("\n"), err[:13]) == ("", 1, "portability: ") if code else err == ""


def said(monkeypatch, capsys, code, *words):
    """What the command prints and complains of, in this process."""
    monkeypatch.setattr(sys, "argv", ["run", *words])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as end:
        main()
    assert (end.value.code or 0) == code
    return capsys.readouterr()


def sources(*words):
    """Origin's set by relation, and the study's sets in their order."""
    got = study("method=lora", *words)
    named = {relation: {own: spec.name for own, spec in sources.items()}
             for relation, sources in got.grid.relations.items()}
    return named, list(got.data.sources)


@pytest.mark.parametrize(("words", "relations"), [
    (["grid.relations={mine: nano_gadgets}"], {"mine": "nano_gadgets"}),
    (["grid.relations.new=nano_gadgets"], {"same": "nano_films", "different": "nano_meals",
                                           "new": "nano_gadgets"}),
    (["grid.relations.different=nano_gadgets"], {"same": "nano_films", "different": "nano_gadgets"}),
    (["~grid.relations.different"], {"same": "nano_films"}),
    (["grid.relations={mine: nano_gadgets}", "grid.relations.more=self"],
     {"mine": "nano_gadgets", "more": "nano_films"}),
    (["+grid.relations={mine: nano_gadgets}"], {"same": "nano_films", "different": "nano_meals",
                                                "mine": "nano_gadgets"}),
])
def test_relations_are_named_anew_and_extended_without_a_plus(words, relations):
    assert sources("+sweep=full", "primary=[]", *words)[0] == {name: {"nano_films": value}
                                                               for name, value in relations.items()}


def test_the_sets_of_a_study_follow_from_data_and_relations_unless_they_are_given():
    nano = ["nano_films", "nano_meals", "nano_gadgets"]
    assert sources() == ({"same": {"nano_films": "nano_films"}}, nano)
    assert sources("grid.data=nano_gadgets") == ({"same": {"nano_gadgets": "nano_gadgets"}}, nano)
    relations = {"same": {"nano_gadgets": "nano_gadgets"}, "far": {"nano_gadgets": "nano_films"}}
    few = ("host_set.study_data=[nano_meals]", "grid.data=nano_gadgets", "grid.relations.far=nano_films")
    assert sources(*few) == (relations, ["nano_meals", "nano_gadgets", "nano_films"])
    assert sources(*few, "grid.study_data=[nano_films,nano_gadgets]") == (relations,
                                                                          ["nano_films", "nano_gadgets"])
    with pytest.raises(UserError, match="unknown data set of grid.study_data 'nano_gadgets'; choose one of: "
                       "nano_films"):
        sources("grid.data=nano_gadgets", "grid.study_data=[nano_films]")


@pytest.mark.parametrize(("text", "words"), [
    ("foo: {library: adapters}", "and holds foo"), ("", "and holds nothing"),
    ("mine: {library: [", "expected the node"),
    ("lora: {library: adapters, config: LoRAConfig, settings: {r: 4}, learning_rate: 1.0}", "and holds lora"),
    ("mine: {library: a}\nother: {library: a}", "and holds mine, other"),
])
def test_a_methods_file_holds_a_method_of_its_own_name(tmp_path, monkeypatch, capsys, text, words):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text(text)
    err = said(monkeypatch, capsys, 2, "--config-dir", str(tmp_path), "method=mine", "mode=plan")[1]
    assert words in err and "method/mine.yaml" in err and err.count("\n") == 1


@pytest.mark.parametrize("group", ["method", "host", "sweep"])
def test_a_file_that_is_not_utf_8_is_named(tmp_path, monkeypatch, capsys, group):
    (tmp_path / group).mkdir()
    (tmp_path / group / "mine.yaml").write_bytes("# caf\xe9\nmine: {}\n".encode("latin-1"))
    err = said(monkeypatch, capsys, 2, "--config-dir", str(tmp_path), "mode=plan")[1]
    assert f"{group}/mine.yaml is not UTF-8 (byte 6); save it as UTF-8" in err and err.count("\n") == 1


@pytest.mark.parametrize("name", ["''", "a/b", "/tmp/a", "..", ".", "'a\nb'"])
def test_a_study_is_one_folder_right_below_the_results(name):
    with pytest.raises(UserError, match="study must be the name of one folder, without slashes .*, got "):
        compose([f"study={name}"])


def test_results_and_hosts_lie_below_the_home_folder_where_a_path_says_so(monkeypatch, make_host):
    source = Path(make_host("t5").source)
    monkeypatch.setenv("HOME", str(source.parent))
    study = compose(["results='~/found'", f"host.nano-raw-base.path='~/{source.name}'"])
    with pytest.raises(UserError, match="cannot read 'results=~/found'.* a value with a sign like ~ stands "
                       "in quotes"):
        compose(["results=~/found"])
    assert study.results == source.parent / "found"
    assert study.grid.pairs[0][0].fingerprint == make_host("t5").fingerprint
    for word in ("results=null", "results=3"):
        with pytest.raises(UserError, match="results must be a string, got "):
            compose([word])


def test_a_sweep_cannot_smuggle_in_an_unknown_key(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "mine.yaml").write_text("# @package _global_\nstudy: mine\ngrid:\n  seedz: [1]\n")
    assert "seedz" in said(monkeypatch, capsys, 2, "+sweep=mine", "mode=plan", "--config-dir",
                           str(tmp_path))[1]


def test_hosts_and_data_of_ones_own_live_in_a_folder_of_ones_own(tmp_path, make_host, data_folders,
                                                                 monkeypatch, capsys):
    for group, text in (("host", f"mine: {{path: {make_host('t5', 32, 2, 4, 0).source}}}"),
                        ("data", f"ours: {{path: {data_folders['one']}}}")):
        (tmp_path / group).mkdir()
        (tmp_path / group / f"{text.partition(':')[0]}.yaml").write_text(text)
    words = ("--config-dir", str(tmp_path), "mode=plan", "origin=mine", "receiving=mine", "grid.data=ours")
    assert "data ours: 200 train" in said(monkeypatch, capsys, 0, *words)[0]


def test_hub_hosts_without_a_hub_say_what_to_do_instead():
    with pytest.raises(UserError, match="cannot fetch google/flan-t5-base.*host_set=nano"):
        study("receiving=flan-t5-base")
    with pytest.raises(UserError, match="40-digit revision"):
        study("receiving=flan-t5-base", "host.flan-t5-base.revision=main")


def test_pickled_weights_are_refused(make_host, tmp_path):
    import shutil
    folder = tmp_path / "pickled"
    shutil.copytree(make_host("t5").source, folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="found pytorch_model.bin; pickled weights are refused"):
        study(f"host.nano-raw-base.path={folder}")


@pytest.mark.parametrize(("name", "change"), [
    ("tokenizer_config.json", {"do_lower_case": True}), ("config.json", {"layer_norm_epsilon": 0.5})])
def test_settings_beside_the_weights_are_part_of_a_host(make_host, tmp_path, name, change):
    import json
    import shutil

    from portability.hosts.sources import HostSource, describe
    first = make_host("t5", 32, 2, 4, 0)
    folder = shutil.copytree(first.source, tmp_path / "host")
    values = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(values | {"name_or_path": "elsewhere",
                                                    "transformers_version": "0"}))
    assert describe(HostSource("a", path=str(folder))).fingerprint == first.fingerprint
    below = {"parts": [{"torch_dtype": "bfloat16"}]}  # configurations may stand in each other
    (folder / name).write_text(json.dumps(values | below))
    with_parts = describe(HostSource("a", path=str(folder))).fingerprint
    (folder / name).write_text(json.dumps(values
                                          | {"parts": [{"torch_dtype": "float32",
                                                        "transformers_version": "0"}]}))
    assert describe(HostSource("a", path=str(folder))).fingerprint == with_parts != first.fingerprint
    (folder / name).write_text(json.dumps(values))
    assert describe(HostSource("a", path=str(folder))).fingerprint == first.fingerprint
    (folder / name).write_text(json.dumps(values | change))
    assert describe(HostSource("a", path=str(folder))).fingerprint != first.fingerprint


def test_a_host_that_changed_since_planning_is_refused(make_host, tmp_path):
    import shutil

    from portability.hosts.host import load_host
    from portability.hosts.sources import HostSource, describe
    folder = shutil.copytree(make_host("t5", 32, 2, 4, 0).source, tmp_path / "host")
    planned = describe(HostSource("a", path=str(folder)))
    load_host(planned)
    shutil.copy(f"{make_host('t5', 32, 2, 4, 1).source}/model.safetensors", folder / "model.safetensors")
    with pytest.raises(UserError, match="changed since the study was planned"):
        load_host(planned)


@pytest.mark.parametrize(("text", "words"), [
    ("{", "not a JSON object"), ("[]", "not a JSON object"), ('{"model_type": "t5"}', "lacks d_model"),
    ('{"model_type": "x"}', "unknown host family")])
def test_broken_host_configurations_are_one_sentence(make_host, tmp_path, text, words):
    import shutil

    from portability.hosts.sources import HostSource, describe
    folder = shutil.copytree(make_host("t5", 32, 2, 4, 0).source, tmp_path / "host")
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match=words):
        describe(HostSource("a", path=str(folder)))


def test_run_ids_do_not_depend_on_folders_or_workers(data_folders, make_host, tmp_path):
    import shutil
    first = plan(small(data_folders, make_host).grid).runs
    moved = {name: shutil.copytree(folder, tmp_path / f"elsewhere-{name}")
             for name, folder in data_folders.items()}
    assert set(plan(small(moved, make_host, "engine.workers=7", "engine.stack=3").grid).runs) == set(first)
    host = shutil.copytree(make_host("t5", 32, 2, 4, 0).source, tmp_path / "host")
    assert set(plan(small(data_folders, make_host, f"host.nano-raw-base.path={host}").grid).runs) == set(
        first)


@pytest.mark.parametrize("what", ["hyper-parameter", "data byte", "label", "host weight"])
def test_what_is_learned_from_changes_the_ids(data_folders, make_host, tmp_path, what):
    import shutil

    from safetensors.torch import load_file, save_file
    first = trained(small(data_folders, make_host, "method=lora"))
    extra = ["method=lora"]
    if what == "hyper-parameter":
        extra.append("method.lora.settings.r=5")
    elif what == "host weight":
        hosts = [shutil.copytree(make_host("t5", 32, 2, 4, seed).source, tmp_path / str(seed))
                 for seed in (0, 1)]
        for folder in hosts:
            weights = load_file(folder / "model.safetensors")
            weights["shared.weight"][0, 0] += 1e-3
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        extra += [f"host.nano-raw-base.path={hosts[0]}", f"host.nano-tuned-base.path={hosts[1]}"]
    else:
        data_folders = {name: shutil.copytree(folder, tmp_path / name)
                        for name, folder in data_folders.items()}
        path = data_folders["one"] / "train.jsonl"
        lines = path.read_text().splitlines()
        new = lines[3].replace(" ", "  ", 2) if what == "data byte" else lines[3].replace('"label": 1',
                                                                                          '"label": 0')
        assert new != lines[3]
        path.write_text("\n".join([*lines[:3], new, *lines[4:]]) + "\n")
    assert not first & trained(small(data_folders, make_host, *extra))


def trained(got):
    """Ids of all runs with a module (a bare host has no hyper-parameter and no training data to change)."""
    return {run_id for run_id, run in plan(got.grid).runs.items() if run.method is not None}


@pytest.mark.system
def test_planning_imports_no_torch(tmp_path):
    code = ("import sys; sys.argv = ['run', 'mode=plan']; from portability.run import main\n"
            "try: main()\nexcept SystemExit as end: assert not end.code, end.code\n"
            "bad = {'torch', 'transformers', 'adapters'} & set(sys.modules); assert not bad, bad")
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    assert "cells" in done.stdout and "distinct" in done.stdout


@pytest.mark.system
def test_the_command_prints_one_sentence_and_fails(tmp_path):
    done = command("origin=nobody", cwd=tmp_path)
    assert done.returncode != 0 and done.stderr.startswith("portability: unknown host 'nobody'")
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []


def test_a_rate_that_falls_to_nothing_has_one_budget():
    got = study("method=lora", "grid.budgets=[50]", "train.schedule=linear")
    assert got.grid.train.schedule == "linear"
    plain = plan(study("method=lora", "grid.budgets=[50]").grid).runs
    assert not plan(got.grid).runs.keys() & {run_id for run_id, run in plain.items() if run.method}
    with pytest.raises(UserError, match=r"so the budgets 50, 200 would not nest; leave one \(grid.budgets\)"):
        study("method=lora", "grid.budgets=[50,200]", "train.schedule=linear")
    with pytest.raises(UserError, match=r"unknown train.schedule 'cosine'; choose one of: constant, linear"):
        study("method=lora", "train.schedule=cosine")


def test_derived_hosts_that_were_not_made_are_named_all_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("PORTABILITY_CACHE", str(tmp_path))
    hosts = [f"host.{name}={{derive: {{from: tasks-large, thinned: {{layers: {layers}}}}}, path: null}}"
             for name, layers in (("nano-raw-base", 2), ("nano-tuned-base", 3))]
    with pytest.raises(UserError, match=r"portability derive nano-raw-base nano-tuned-base$"):
        study("method=lora", *hosts)
    with pytest.raises(UserError, match=r"host 'nano-tuned-base' is derived from 'tasks-large' and was not "
                                        r"made here yet; make it once: portability derive nano-tuned-base$"):
        study("method=lora", hosts[1])


def test_a_loss_by_tokens_is_of_answers_to_prompts():
    with pytest.raises(UserError, match=r"train.loss=token is of answers to prompts, and no data set of the"):
        study("method=lora", "train.loss=token")


def whole_seeds(got):
    """How many seeds of a study's contrast the tables could use, if all its cells were done."""
    (contrast,) = got.primary
    cells = pd.DataFrame(map(vars, plan(got.grid).cells)).assign(value=0.5, status="done")
    cells = cells[(cells["init"] != "bare") & (cells["budget"] == contrast.budget)]
    pairs = pairs_of(cells, "init", (contrast.arm, contrast.baseline), 1.0).assign(one=0)
    return len(next(build_blocks(pairs, ["one"])).differences)


@pytest.mark.parametrize(("exclude", "left"), [
    ("{method: lora, init: scratch}", ""),
    ("{init: scratch, port: repeat}", ""),
    ("{method: lora, init: scratch, seed: 0}, {method: adapter, init: ported, seed: 1}", ""),
    ("{method: lora, init: scratch, seed: 0}", "1"), ("{method: lora}, {budget: 20}", "2"),
    ("{init: scratch, port: repeat}, {init: ported, port: pad}", "2"),
])
def test_a_contrast_that_can_have_no_whole_seed_is_refused_and_no_other(exclude, left, monkeypatch):
    words = ("+sweep=smoke", "grid.ports=[pad,repeat]", f"grid.exclude=[{exclude}]",
             "primary=[{name: a, arm: ported, baseline: scratch, budget: 10}]")
    if not left:
        told = exclude.strip("{}").replace(":", "").replace("}, {", "; ")
        with pytest.raises(UserError, match=rf"primary 'a' compares .* leaves out \({told}\), so no seed"):
            study(*words)
        monkeypatch.setattr("portability.config.study.cut_by", lambda *_: [])
    assert whole_seeds(study(*words)) == int(left or 0)


def test_a_grid_keeps_some_of_its_cells():
    with pytest.raises(UserError, match=r"grid.exclude leaves out every cell of the grid; leave fewer out"):
        study("+sweep=smoke", "grid.exclude=[{receiving: tuned_base}]")
    with pytest.raises(UserError, match=r"unknown seed of grid.exclude\[1\] '7'; choose one of: 0, 1"):
        study("+sweep=smoke", "grid.exclude=[{budget: 10}, {seed: [0, 7]}]")
    contrast = "primary=[{name: a, arm: ported, baseline: scratch, budget: 10, of: {method: lora}}]"
    with pytest.raises(UserError, match=r"primary 'a' compares cells that grid.exclude leaves out"):
        study("+sweep=smoke", "grid.exclude=[{method: lora, init: scratch}]", contrast)
    assert study("+sweep=smoke", "grid.exclude=[{method: lora, seed: 0}, {budget: 20}]", contrast).primary
    got = study("+sweep=smoke", "grid.exclude=[{receiving: tuned_base, method: lora}]")
    assert got.grid.exclude == [{"receiving": ["nano-tuned-base"], "method": ["lora"]}]
    assert {cell.method for cell in plan(got.grid).cells} == {"adapter"}
