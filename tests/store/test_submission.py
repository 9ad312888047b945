"""What others send is whole, can be made again, may be passed on, and holds nothing but numbers and settings:
each fault that is planted is named in one sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from portability.store import Store
from portability.store.__main__ import main as command
from portability.store.admin import archive
from portability.store.manifests import write as write_manifest
from portability.store.records import canonical, with_digest
from support.store_parts import ported, study
from support.synthetic import ROOT

LICENCES = """results: CC-BY-4.0
hosts:
  nano-raw-base: Apache-2.0
  nano-tuned-base: Apache-2.0
data:
  nano_films: Apache-2.0
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small study as somebody sends it."""
    root = tmp_path_factory.mktemp("sent")
    original = study("format2", root / "original")
    assert command(["pack", str(original.root), "--out", str(root / "mine")]) == 0
    (root / "mine/README.md").write_text("# Mine\n\n`portability run method=adapter`, on two cores.\n")
    (root / "mine/licences.yaml").write_text(LICENCES)
    return root / "mine"


@pytest.fixture
def sent(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "mine"))


def said(capsys, root: Path) -> tuple[int, list[str]]:
    capsys.readouterr()
    code = command(["verify", "--submission", str(root)])
    return code, capsys.readouterr().out.splitlines()


def rewrite(root: Path, name: str, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Change the rows of a table of the copy."""
    path = root / f"published/{name}.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    archive.write(path, pa.Table.from_pylist(change(rows) or rows, table.schema))


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """A record with the digest that it now has."""
    return with_digest({key: item for key, item in value.items() if key != "digest"})


def record(root: Path, change: Callable[[dict[str, Any]], Any], seal: bool = True) -> None:
    """Change the record of the ported run, its digest too, and the cells that are made of it."""
    run_id = ported(Store(root))

    def rows(found):
        row = next(row for row in found if row["run_id"] == run_id)
        value = json.loads(row["record"])
        change(value)
        row["record"] = canonical(sealed(value) if seal else value)

    rewrite(root, "records", rows)
    cells(root)


def manifest(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest, its name too, and the cells that are made of it."""
    (path,) = (root / "manifests").iterdir()
    value = json.loads(path.read_text())
    change(value)
    path.unlink()
    write_manifest(root, value)
    cells(root)


def cells(root: Path) -> None:
    archive.cells_of(Store(root)).to_parquet(root / "published/cells.parquet", index=False)


def licences(root: Path, old: str, new: str) -> None:
    path = root / "licences.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def lost_cell(value):
    value["cells"].append({**value["cells"][-1], "seed": 9, "run_id": "f" * 16})


def longer(rows):
    next(row for row in rows if row["example"] == 3)["margin"] += 0.001


def without_predictions(rows):
    return [row for row in rows if row["run_id"] != rows[0]["run_id"]]


def with_texts(root):
    path = root / "published/predictions.parquet"
    table = pq.read_table(path)
    archive.write(path, table.append_column("text", pa.array(["a film"] * len(table))))


def in_record(change, seal=True):
    return lambda root: record(root, change, seal)


def in_manifest(change):
    return lambda root: manifest(root, change)


def in_table(name, change):
    return lambda root: rewrite(root, name, change)


def in_licences(old, new):
    return lambda root: licences(root, old, new)


def in_file(name, text):
    return lambda root: (root / name).write_text(text)


def without(name):
    return lambda root: (root / name).unlink()


def renamed(root):
    next((root / "manifests").iterdir()).rename(root / f"manifests/{'a' * 16}.json")


PLACE, KEY = "names a place on somebody's machine ", "holds what looks like a password or a key"
FAULTS = {
    "a module": (in_file("module.safetensors", "0"), "module.safetensors is no part of a submission"),
    "a link": (lambda root: (root / "report.md").symlink_to(ROOT / "README.md"), "report.md is a link"),
    "no README": (without("README.md"), "README.md is not there"),
    "a path in the README": (in_file("README.md", "in /home/ada/results"), PLACE + "(/home/ada/results)"),
    "a home in the README": (in_file("README.md", "run in ~/portability"), PLACE + "(~/portability)"),
    "a key in the README": (in_file("README.md", "WANDB_API_KEY=0123456789abcdef"), "README.md " + KEY),
    "a token in the README": (in_file("README.md", "hf_" + "a1" * 17), "README.md " + KEY),
    "no licences": (without("licences.yaml"), "licences.yaml is not there"),
    "licences that are no YAML": (in_file("licences.yaml", "hosts: ["), "is no YAML"),
    "licences without results": (in_licences("results: CC-BY-4.0\n", ""), "must have three keys"),
    "an empty licence": (in_licences("CC-BY-4.0", "''"), "names no licence of the results"),
    "a host without one": (in_licences("  nano-tuned-base: Apache-2.0\n", ""),
                           "names no licence of 'nano-tuned-base' under hosts"),
    "data without one": (in_licences("nano_films: Apache-2.0", "nano_films:"),
                         "names no licence of 'nano_films' under data"),
    "a name that is none": (in_licences("data:\n", "data:\n  nano_filmz: MIT\n"),
                            "has 'nano_filmz' under data, which no record names"),
    "a prediction that was changed": (in_table("predictions", longer), "differ from the record's digest"),
    "no predictions of a run": (in_table("predictions", without_predictions), "predictions are not there"),
    "a table with texts": (with_texts, "predictions.parquet has a column 'text', which no"),
    "a record that was changed": (
        in_record(lambda value: value["run_info"].update(total_time=1.0), seal=False), "record's own digest"),
    "a cut table": (in_file("published/records.parquet", "PAR1"), "records.parquet cannot be read"),
    "a better accuracy": (
        in_record(lambda value: value["train_info"]["metrics"][-1].update(eval_accuracy=0.99)),
        "says accuracy 0.9900 at 2 updates and its predictions say"),
    "a better AUC": (in_record(lambda value: value["train_info"]["metrics"][-1].update(eval_auc=0.99)),
                     "says auc 0.9900 at 2 updates and its predictions say"),
    "a metric of other predictions": (
        in_record(lambda value: value["train_info"]["metrics"][-1].update(eval_rougeL=0.5)),
        "says rougeL 0.5000 at 2 updates and its predictions say nan"),
    "a cell without a run": (in_manifest(lost_cell), "a cell names a run without result or failure"),
    "a cell at another mark": (in_manifest(lambda value: value["cells"][-1].update(mark=1)),
                               "a cell names a run without result or failure"),
    "a manifest without its contrasts": (in_manifest(lambda value: value.pop("primary")),
                                         "does not say: primary"),
    "a manifest under another name": (renamed, "it was changed: the digest of its content is"),
    "no version of torch": (in_record(lambda value: value["meta_info"]["package_info"].pop("torch")),
                            "the version of torch is not in 1 record"),
    "a method's library that is not installed": (
        in_record(lambda value: value["meta_info"]["package_info"].update(adapters="not installed")),
        "the version of adapters is not in 1 record"),
    "changed code": (in_record(lambda value: value["run_info"].update(worktree_dirty=True)),
                     "1 run came out of a changed working tree"),
    "two protocols": (in_record(lambda value: value.update(schema=1)), "of several protocols (schema 1, 2)"),
    "two versions of transformers": (
        in_record(lambda value: value["meta_info"]["package_info"].update(transformers="5.2.0")),
        "of several versions of transformers (major 4, 5)"),
    "a path in a record": (
        in_record(lambda value: value["port_info"].update(notes=["read /data/texts/a.jsonl"])),
        PLACE + "(/data/texts/a.jsonl)"),
    "a path in a command": (in_manifest(lambda value: value["overrides"].append("data_root=/scratch")),
                            PLACE + "(/scratch)"),
    "a path on Windows": (in_record(lambda value: value["port_info"].update(notes=["C:\\Users\\ada"])),
                          PLACE + "(C:\\Users"),
    "a secret in a record": (in_record(lambda value: value["run_info"].update(api_key="0123456789ab")), KEY),
    "a text in a record": (in_record(lambda value: value["port_info"].update(notes=["a good film " * 50])),
                           "holds a text of 600 characters (notes)"),
    "another key in a record": (in_record(lambda value: value.update(texts=[])),
                                "has the key 'texts', which no record has"),
}


def test_a_study_that_is_as_it_should_be_can_be_sent(sent, capsys):
    assert said(capsys, sent) == (0, ["nothing to put right: it can be sent"])


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_in_one_sentence(sent, capsys, fault):
    plant, words = FAULTS[fault]
    plant(sent)
    code, lines = said(capsys, sent)
    assert code == 1 and len(lines) == 2 and lines[1] == "1 thing to put right", lines
    assert words in lines[0] and lines[0].startswith("mine: "), lines


def test_a_study_that_was_asked_for_without_words_can_be_sent(sent, capsys):  # its README says how
    manifest(sent, lambda value: value.pop("overrides"))
    assert said(capsys, sent)[0] == 0


def test_a_failure_stands_for_a_result(sent, capsys):
    run_id = "f" * 16
    manifest(sent, lost_cell)
    failure = {"run_id": run_id, "attempt": 1, "error": "loss is not finite", "traceback": None}
    rewrite(sent, "records", lambda rows: [*rows, {"run_id": run_id, "kind": "failure", "attempt": 1,
                                                   "record": canonical(failure)}])
    cells(sent)
    assert said(capsys, sent)[0] == 0


def test_a_secret_is_not_said_again(sent, capsys):
    (sent / "README.md").write_text("https://ada:hunter2secret@example.org")
    code, lines = said(capsys, sent)
    assert code == 1 and "README.md holds" in lines[0] and "hunter2" not in "".join(lines)


def test_equal_faults_of_many_records_are_one_sentence(sent, capsys):
    def rows(found):
        for row in found:
            value = json.loads(row["record"])
            value["run_info"]["note"] = "see /home/ada/notes.txt"
            row["record"] = canonical(sealed(value))

    rewrite(sent, "records", rows)
    code, lines = said(capsys, sent)
    assert code == 1 and len(lines) == 2 and "more like it) names a place" in lines[0], lines


def test_what_is_not_packed_is_told_how(tmp_path, capsys):
    original = study("format2", tmp_path / "original")
    assert command(["verify", "--submission", str(original.root)]) == 2
    assert "portability store pack" in capsys.readouterr().err
    assert command(["verify", "--submission", str(tmp_path / "nothing")]) == 2
    assert "no study in" in capsys.readouterr().err


def test_a_published_study_keeps_the_rule(capsys):  # the others: tests/system/test_published.py
    assert said(capsys, ROOT / "results/strategies_smollm2") == (0, ["nothing to put right: it can be sent"])


def test_the_rule_shows_a_licences_file_that_is_read(sent, capsys):
    text = (ROOT / "docs/submitting.md").read_text()
    shown = text.split("```yaml\n")[1].split("```")[0]
    (sent / "licences.yaml").write_text(shown)
    code, lines = said(capsys, sent)
    assert code == 1 and all(" under " in line for line in lines[:-1])  # it names other hosts and data
