"""What a notebook imports."""

import subprocess
import sys

import pytest

import portability
from portability import api
from support.tiny import METHODS, noisy


@pytest.mark.system
def test_every_name_can_be_had_from_the_package_and_none_of_them_loads_torch_before():
    assert {*api.__all__} <= {*dir(portability)} and all(getattr(portability, name) for name in api.__all__)
    code = "import sys, portability; assert 'torch' not in sys.modules; portability.Store"
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


def test_a_study_is_carried_out_and_read(tmp_path):
    words = ["+sweep=smoke", "method=lora", "engine=inprocess", "similarity=false", "yes=true",
             "tracking.wandb=disabled", f"results={tmp_path}", "grid.inits=[ported,scratch]"]
    table = portability.cells(portability.run_study(portability.compose(words)))
    assert set(table["status"]) == {"done"} and table["value"].notna().all()


def test_an_embedded_host_is_loaded_by_its_name():
    assert portability.load("embedded:nano-raw-base").family == "t5"
