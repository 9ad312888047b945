"""What a notebook imports."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import portability
from portability import export
from portability.hosts.resolve import find_host
from portability.methods.files import module_of, read_folder
from portability.methods.module import ModuleState, equal
from support.peft_methods import write_plain
from support.tiny import METHODS, noisy


@pytest.mark.system
def test_every_name_can_be_had_from_the_package_and_none_of_them_loads_torch_before():
    names = {*portability.STUDIES, *portability.MODULES}
    assert names <= {*dir(portability)} and all(getattr(portability, name) for name in names)
    code = ("import sys, portability; loaded = lambda: {'torch', 'transformers'} & {*sys.modules}\n"
            "assert not loaded() and dir(portability)\n"
            "assert portability.plan_study(['+sweep=smoke']).cells and not loaded(); portability.Host")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'port_modul'"):
        portability.port_modul  # noqa: B018


def test_a_module_is_ported_and_the_receiving_host_is_as_it_was(mount, load):
    source, host = mount("lora", "t5", 32, 2, 4), load("t5", 48, 3, 6)
    before = {name: value.clone() for name, value in host.model.state_dict().items()}
    done = portability.port_module(noisy(source, 1), source.host.spec, host, METHODS["lora"])
    assert done.report.carried_fraction == 1.0 and 0 < done.report.filled_fraction < 1
    after = host.model.state_dict()
    assert after.keys() == before.keys() and all((after[name] == value).all()
                                                 for name, value in before.items())
    with pytest.raises(portability.UserError, match="cannot copy"):
        portability.port_module(noisy(source, 1), source.host.spec, host, METHODS["lora"], strategy="copy")


def test_a_study_is_read_by_the_metric_that_decides_it():
    drift = Path(portability.__file__).parents[1] / "results/drift"
    table = portability.load_study(drift).cells
    assert table["value"].notna().all() and table["value"].equals(table["eval_auc"].rename("value"))
    other = portability.cells(drift, "eval_accuracy")
    assert other["value"].equals(table["eval_accuracy"].rename("value"))


def test_a_study_is_carried_out_and_read(tmp_path):
    words = ["+sweep=smoke", "method=lora", "engine=inprocess", "similarity=false", "yes=true",
             "tracking.wandb=disabled", f"results={tmp_path}", "grid.inits=[ported,scratch]"]
    table = portability.cells(portability.run_study(portability.compose(words)))
    assert set(table["status"]) == {"done"} and table["value"].notna().all()
    study = portability.load_study(tmp_path / "smoke_nano")
    assert study.cells.equals(table) and set(study.runs["run_id"]) == {*portability.plan_study(words).runs}
    one = study.cells[study.cells["init"] == "ported"].iloc[0]
    answers = study.predictions.query("run_id == @one.run_id and updates == @one.mark")
    assert answers["right"].mean() == pytest.approx(one["value"])
    assert [*answers["example"]] == [*range(len(answers))]
    words = [str(study.store.root), one.run_id, "--out", str(tmp_path / "out"), "--answers",
             str(tmp_path / "a.jsonl")]
    assert export.main(words) == 0 and (tmp_path / "out/adapter_config.json").is_file()
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == len(answers)
    held = ModuleState.from_file(*study.store.tensors(one.run_id, "module"))
    run = export.run_of(study.store, one.run_id)
    assert equal(module_of(read_folder(tmp_path / "out"), run.host.shape), held)
    (tmp_path / "a.jsonl").unlink()
    assert export.main(words) == 2 and not (tmp_path / "a.jsonl").exists()  # nothing half written


def test_an_adapter_is_ported_and_saved(load, make_host, tmp_path):
    write_plain(tmp_path / "mine", load("llama", 32, 2, 4), "lora")
    config, receiving = tmp_path / "mine/adapter_config.json", make_host("llama", 48, 3, 6)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(portability.UserError, match="does not say what its base model is"):
        portability.port_adapter(tmp_path / "mine", receiving)
    origin = make_host("llama", 32, 2, 4)
    done = portability.port_adapter(str(tmp_path / "mine"), receiving.source, from_=origin.source,
                                    strategy="pad")
    assert done.report.carried_fraction == 1.0
    done.save(tmp_path / "new")
    again = portability.port_adapter(portability.load_adapter(tmp_path / "new"), receiving, strategy="pad")
    assert all((again.parameters[name] == value).all() for name, value in done.parameters.items())
    assert f"base_model: {Path(receiving.source).name}\n" in (tmp_path / "new/README.md").read_text()
    with pytest.raises(portability.UserError, match="is there already"):
        done.save(tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "new"]


def test_an_embedded_host_is_loaded_by_its_name():
    assert portability.load("embedded:nano-raw-base").family == "t5"
    assert find_host("embedded:nano-raw-base").source == "embedded:nano-raw-base"  # not its path
