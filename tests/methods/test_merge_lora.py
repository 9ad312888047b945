"""A run's LoRA in its host's weights: the plain host answers as the run did."""


import numpy as np
import pytest

from portability.data.splits import rows
from portability.data.tokenization import encode
from portability.hosts.host import load_host
from portability.hosts.sources import HostSource, describe
from portability.merge import main
from portability.planning.plan import plan
from portability.run import command
from portability.store import Store
from portability.tasks.classification import Scorer
from support import store_parts
from support.extracted import QUICK, hosts, inits
from support.studies import small

pytestmark = pytest.mark.system  # takes long

RATE = "method.lora_all.learning_rate=0.02"


def answers(folder, run, data):
    """Margins of a plain host folder on a run's test set."""
    host = load_host(describe(HostSource("merged", path=str(folder))))
    test = encode(rows(data, run.data.name, "test", 0), host.tokenizer, run.task, True)
    return Scorer(host, run.task).predict({}, test, run.eval.batch_size).margin[0]


@pytest.mark.parametrize(("family", "init"), [
    ("llama", "extracted"), ("gpt2", "extracted_noise"), ("t5", "pissa"), ("llama", "scratch"),
    ("gpt2", "scratch"),
])
def test_a_merged_host_answers_as_the_run_did(family, init, data_folders, make_host, tmp_path):
    sites = ("method.lora_all.settings.sites=[attention,ffn]",) if family == "t5" else ()  # its head is tied
    got = small(data_folders, make_host, *hosts(make_host, family), *QUICK, RATE, inits(init),
                f"results={tmp_path}", "study=m",
                "grid.budgets=[15]", *sites, "method.lora_all.settings.alpha=8")
    assert command(got) == 0
    (run,) = [run for run in plan(got.grid).runs.values() if run.init.name == init
              and run.host.name == "nano-raw-base"]
    out = ["--out", str(tmp_path / "host")]
    assert main([str(tmp_path / "m"), run.run_id, *out, "--host", run.host.source]) == 0
    saved = Store(tmp_path / "m").predictions(run.run_id)["margin"]
    found = answers(tmp_path / "host", run, got.data)
    np.testing.assert_allclose(found, saved[-1], atol=1e-4)
    assert abs(found - saved[0]).max() > 0.003, "training changed nothing"
    assert not list((tmp_path / "host").glob("*.bin"))


def refused(capsys, *words):
    assert main([str(word) for word in words]) == 2
    return capsys.readouterr().err


def test_what_cannot_be_merged_is_one_sentence(data_folders, make_host, tmp_path, capsys):
    got = small(data_folders, make_host, *hosts(make_host), *QUICK, inits("scratch"), f"results={tmp_path}",
                "study=m", "grid.budgets=[2]")
    assert command(got) == 0
    planned = [run for run in plan(got.grid).runs.values() if run.host.name == "nano-raw-base"]
    bare, run = sorted(planned, key=lambda run: run.train.updates)
    study, new = tmp_path / "m", tmp_path / "host"
    assert "no run 123" in refused(capsys, study, "123", "--out", new)
    assert "has no LoRA of library portability" in refused(capsys, study, bare.run_id, "--out", new)
    old = store_parts.study("format1", tmp_path / "old")
    first = next(iter(old.marks()))
    assert "of an older protocol (schema 1)" in refused(capsys, old.root, first, "--out", new)
    assert "say where it is: --host FOLDER" in refused(capsys, study, run.run_id, "--out", new)
    other = make_host("t5", 32, 2, 4, 3).source
    assert "is not the host" in refused(capsys, study, run.run_id, "--out", new, "--host", other)
    assert "ties its head to its embedding" in refused(capsys, study, run.run_id, "--out", new, "--host",
                                                       run.host.source)
    assert not new.exists()
    new.mkdir()
    assert "is there already" in refused(capsys, study, run.run_id, "--out", new, "--host", run.host.source)
