"""Somebody's adapter in a study: its method, and its module in place of an origin's."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from portability.core.errors import UserError
from portability.inits.external import described
from portability.methods.files import module_of, read_folder
from portability.methods.module import ModuleState, equal
from portability.planning.plan import plan
from portability.run import asked_for, command
from portability.store import Store
from portability.studies import cells
from support import adapters_methods
from support.peft_methods import write_plain
from support.studies import study

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
RATE = "method.mine.learning_rate=3e-3"


@pytest.fixture
def adapter(load, tmp_path):
    """A LoRA of rank 4 that peft trained on the first Llama."""
    write_plain(tmp_path / "my-lora", load("llama", 32, 2, 4), "lora")
    return tmp_path / "my-lora"


@pytest.fixture
def small(adapter, data_folders, make_host, tmp_path):
    """A study from one tiny host to a larger one, given by more words."""
    def make(*words, origin=("llama", 32, 2, 4), receiving=("llama", 48, 3, 4)):
        one, two = make_host(*origin), make_host(*receiving)
        return study(
            f"host.nano-raw-base.path={one.source}", f"host.nano-tuned-base.path={two.source}",
            f"data.nano_films.path={data_folders['one']}", "grid.study_data=[nano_films]",
            "grid.budgets=[2]", "grid.seeds=[0,1]", "task.template='{text} answer :'", "task.max_length=48",
            "similarity=false", "engine=inprocess", "tracking.wandb=disabled", "yes=true",
            f"results={tmp_path}/results", *words)

    return make


def folders(adapter):
    return f"method.mine.from={adapter}", RATE, f"origin.module={adapter}"


# ---- a method


def test_modules_stay_named_where_a_setting_beside_them_names_modules(adapter, small):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"rank_pattern": {"q_proj": 2}}))
    (method,) = small(f"method.mine.from={adapter}", RATE).grid.methods
    assert "sites" not in method.settings and method.settings["target_modules"]


def test_a_folder_gives_a_method_and_what_is_written_beside_it_wins(adapter, small):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"lora_dropout": 0.1}))
    (method,) = small(f"method.mine.from={adapter}", RATE).grid.methods
    assert (method.name, method.library, method.config, method.learning_rate) == (
        "mine", "peft", "LoraConfig", 3e-3)
    settings = method.settings
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (4, 8, 0)
    assert settings["sites"] == ["attention", "ffn"] and "target_modules" not in settings
    words = ("method.mine.settings.r=2", "method.mine.settings.sites=[query]")
    (other,) = small(f"method.mine.from={adapter}", RATE, *words).grid.methods
    assert (other.settings["r"], other.settings["sites"]) == (2, ["query"])
    both = small(f"method.mine.from={adapter}", RATE, "method=[lora]").grid.methods
    assert {method.name for method in both} == {"mine", "lora"}


def test_a_file_may_name_the_folder(adapter, small, tmp_path):
    (tmp_path / "conf/method").mkdir(parents=True)
    (tmp_path / "conf/method/mine.yaml").write_text(
        f"mine: {{from: {adapter}, learning_rate: 0.01, settings: {{target_modules: [q_proj]}}}}\n")
    (method,) = small("--config-dir", str(tmp_path / "conf"), "method=[mine]").grid.methods
    assert method.learning_rate == 0.01 and method.settings["target_modules"] == ["q_proj"]
    assert "sites" not in method.settings and method.settings["r"] == 4


@pytest.mark.parametrize("text", [
    "methods: {{lora: {}}}", "methods: ['{}']", "method: {{lora: {{from: '{}'}}}}",
])
def test_a_folder_never_changes_a_method_of_conf(adapter, small, tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text.format(adapter.rename(tmp_path / "lora")))
    with pytest.raises(UserError, match="method.lora.from=.*/lora: lora is a method of its own file; give"):
        small(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(("words", "said"), [
    (["method.mine.from={adapter}"], "learning_rate is missing: an adapter's folder does not say it"),
    (["method.mine.from={adapter}/nothing"], "there is no such folder"),
    (["method.mine.from={adapter}/.."], "holds no adapter_config.json: it is no folder of an adapter"),
    (["method.lora.from={adapter}", "method=[lora]"], "lora is a method of its own file"),
    (["method.mine.from={adapter}", RATE, "method.mine.settings.rr=3"], "unknown key in method.mine.sett"),
    (["method.mine.from={adapter}", RATE, "method.other.learning_rate=1"], "unknown key"),
])
def test_what_gives_no_method_is_said(adapter, small, words, said):
    with pytest.raises(UserError, match=said):
        small(*(word.format(adapter=adapter) for word in words))


def test_references_in_a_folder_are_refused(adapter, small):
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["target_modules"] = "${oc.env:HOME}"
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="holds '\\${', which would be a reference"):
        small(f"method.mine.from={adapter}", RATE)


def test_a_manifest_repeats_no_place(adapter):
    assert asked_for(folders(adapter)) == ["method.mine.from=PATH", RATE, "origin.module=PATH"]


# ---- a module


def test_a_study_starts_from_somebodys_module_and_ends_in_a_table(adapter, small, tmp_path):
    asked = small(*folders(adapter), "grid.inits=[ported,sampled,shuffled,scratch]", "study=theirs")
    planned = plan(asked.grid)
    (external,) = [run for run in planned.runs.values() if run.init.kind == "external"]
    assert external.train.updates == 0 and external.host.name == "llama-32x2-0-0"
    assert {planned.runs[cell.run_id].origin for cell in planned.cells
            if cell.init in ("ported", "sampled", "shuffled")} == {external.run_id}
    assert command(asked) == 0
    store = Store(tmp_path / "results/theirs")
    held = ModuleState.from_file(*store.tensors(external.run_id, "module"))
    assert equal(held, module_of(read_folder(adapter), external.host.shape))
    ported = next(cell for cell in planned.cells if cell.init == "ported")
    record = store.read(ported.run_id)
    assert record["cell"]["origin"] == {"host": "llama-32x2-0-0", "data": "my-lora"}
    assert record["port_info"]["carried_fraction"] == 1.0 and (ported.relation, ported.origin_data) == (
        "external", "my-lora")
    assert not any(str(tmp_path) in path.read_text(errors="replace")
                   for path in store.root.rglob("*.json"))
    table = cells(store).groupby("init")["value"].agg(["count", "mean"])
    assert dict(table["count"]) == {"bare": 2, "ported": 4, "sampled": 4, "shuffled": 4, "scratch": 4}
    assert table["mean"].between(0, 1).all()


@pytest.mark.parametrize("name", ["adapter", "lora", "unipelt"])
def test_a_folder_of_adapters_gives_a_method_and_its_module(load, small, tmp_path, name):
    adapter = tmp_path / "my-module"
    adapters_methods.write_plain(adapter, load("llama", 32, 2, 4), name)
    asked = small(*folders(adapter), "origin=raw_base", "grid.inits=[ported,scratch]", "study=theirs")
    (method,) = asked.grid.methods
    assert (method.name, method.library) == ("mine", "adapters")
    assert command(asked) == 0
    (external,) = [run for run in plan(asked.grid).runs.values() if run.init.kind == "external"]
    held = ModuleState.from_file(*Store(tmp_path / "results/theirs").tensors(external.run_id, "module"))
    assert equal(held, module_of(read_folder(adapter), external.host.shape))
    with pytest.raises(UserError, match="take the method from the folder itself"):
        small(f"origin.module={adapter}", "origin=raw_base", "method=[compacter]")


def test_runs_are_named_by_what_the_folder_holds_and_not_by_where_it_lies(adapter, small, tmp_path):
    ids = set(plan(small(*folders(adapter)).grid).runs)
    shutil.copytree(adapter, tmp_path / "elsewhere")
    config = json.loads((tmp_path / "elsewhere/adapter_config.json").read_text())
    config["base_model_name_or_path"] = "somebody/model"
    (tmp_path / "elsewhere/adapter_config.json").write_text(json.dumps(config))
    words = ("origin=raw_base", *folders(tmp_path / "elsewhere"))
    assert set(plan(small(*words).grid).runs) == ids
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({key: value + 1 for key, value in weights.items()}, adapter / "adapter_model.safetensors")
    other = plan(small(*folders(adapter)).grid)
    changed = {other.runs[run_id].init.kind for run_id in set(other.runs) - ids}
    assert changed == {"external", "ported", "sampled"}


@pytest.mark.parametrize(("key", "value", "same"), [
    ("lora_alpha", 16, False), ("use_rslora", True, False), ("base_model_name_or_path", "x/y", True),
    ("task_type", "CAUSAL_LM", True)])
def test_a_modules_digest_is_of_its_weights_and_of_what_its_numbers_mean(adapter, key, value, same):
    before = described(read_folder(adapter)).digest
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {key: value}))
    assert (described(read_folder(adapter)).digest == before) == same


def test_the_origin_is_the_folders_base_unless_one_is_named(adapter, small, make_host):
    pair = small(*folders(adapter)).grid.pairs[0]
    assert pair[0].fingerprint == make_host("llama", 32, 2, 4).fingerprint
    unnamed = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": None}
    (adapter / "adapter_config.json").write_text(json.dumps(unnamed))
    with pytest.raises(UserError, match="does not say what its base is; name the origin host: origin=HOST"):
        small(*folders(adapter))
    assert small(*folders(adapter), "origin=raw_base").grid.pairs[0][0].name == "nano-raw-base"


@pytest.mark.parametrize(("words", "said"), [
    (["origin.module={adapter}/nothing", "method=[lora_peft]"], "origin.module: .* there is no such folder"),
    (["origin.module={adapter}", "method=[lora]"], "is a module of peft's LoraConfig, and method 'lora' is "
     "adapters's LoRAConfig; take the method from the folder itself: method.NAME.from="),
    (["origin.module={adapter}", "method=[lora_peft]"], "has r=4, and method 'lora_peft' has 8"),
    (["{both}", "method.mine.settings.sites=[query]"], "differ on host 'llama-32x2-0-0' at decoder.0"),
    (["{both}", "method.mine.settings.use_rslora=true"], "has use_rslora=False"),
    (["{both}", "origin=tuned_base"], "does not belong to a llama host of width 48: it was made on another"),
    (["{both}", "grid.inits=[ported,compute_matched]"], "trained for the origin's updates on top"),
    (["{both}", "grid.relations.other=nano_meals", "grid.study_data=[nano_films,nano_meals]"],
     "are sets that origins are trained on"),
    (["{both}", "grid.pairs=[[raw_base,tuned_base],[tuned_base,raw_base]]"], "is the module of one host"),
])
def test_what_does_not_go_with_a_module_is_said(adapter, small, words, said, data_folders):
    given = [word for one in words for word in (
        folders(adapter) if one == "{both}" else [one.format(adapter=adapter)])]
    with pytest.raises(UserError, match=said):
        small(*given, f"data.nano_meals.path={data_folders['two']}")


def test_an_encoder_has_a_head_that_no_folder_brings(load, small, tmp_path):
    write_plain(tmp_path / "one", load("bert", 32, 2, 4), "lora")
    encoders = {"origin": ("bert", 32, 2, 4), "receiving": ("bert", 48, 3, 4)}
    with pytest.raises(UserError, match="brings none to share; set head=fresh"):
        small(*folders(tmp_path / "one"), **encoders)
    assert plan(small(*folders(tmp_path / "one"), "head=fresh", **encoders).grid).runs


def test_a_folder_that_changed_after_planning_fails_its_run(adapter, small, tmp_path):
    asked = small(*folders(adapter), "study=changed", "grid.inits=[ported]", "grid.seeds=[0]")
    name = adapter / "adapter_model.safetensors"
    before = described(read_folder(adapter)).digest
    save_file({key: torch.zeros_like(value) for key, value in load_file(name).items()}, name)
    assert described(read_folder(adapter)).digest != before
    assert command(asked) == 1
    errors = {failure["error"] for failure in Store(tmp_path / "results/changed").failures().values()}
    assert any("changed since the study was planned; run the command again" in error for error in errors)
