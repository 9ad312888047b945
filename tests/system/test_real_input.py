"""Real encoders, real decoders, real sentences: a small part of the sweeps over them. Skipped where they are
not there."""

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from portability.data.sampling import buckets
from portability.planning.plan import plan
from portability.run import command
from portability.store import Store
from support.studies import study

SHARED = Path(__file__).parents[3] / "shared"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared with real hosts and data sets")
ROOTS = (f"host_root={SHARED}/hosts", f"data_root={SHARED}/data", "tracking.wandb=disabled")


def finished(tmp_path, *overrides):
    found = study(*ROOTS, f"results={tmp_path}", *overrides)
    assert command(found) == 0
    return plan(found.grid), Store(tmp_path / found.name)


@pytest.mark.parametrize(("name", "limit", "batch_size", "bound"), [
    ("sst2", 128, 16, 1.05), ("sst2", 128, 32, 1.05), ("rotten_tomatoes", 128, 32, 1.05),
    ("mds_books", 128, 32, 1.10), ("mds_books", 512, 16, 1.10),
])
def test_padding_stays_near_the_real_tokens(name, limit, batch_size, bound):
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "hosts" / "minilm-l6")
    texts = [json.loads(line)["text"] for line in (SHARED / "data" / name / "train.jsonl").open()]
    lengths = np.array([min(limit, len(ids)) for ids in tokenizer(texts, verbose=False)["input_ids"]])
    found = buckets(lengths, 4 * batch_size)
    assert min(len(bucket.members) for bucket in found) >= 4 * batch_size and len(found) > 4
    assert sum(bucket.length * len(bucket.members) for bucket in found) / lengths.sum() <= bound


def test_a_lora_goes_from_six_minilm_layers_to_three(tmp_path):
    planned, store = finished(
        tmp_path, "+sweep=minilm", "method=lora", "grid.pairs=[[minilm-l6,minilm-l3-derived]]",
        "grid.seeds=[0]",
        "grid.budgets=[20]", "eval.limit=60", "grid.relations.different=sst2", "grid.relations.foreign=sst2")
    cells = {cell.init: cell for cell in planned.cells if cell.budget == 20 and cell.relation == "same"}
    info = store.read(cells["ported"].run_id)["port_info"]
    assert info["layer_map"] == {"encoder": [[0], [2], [5]]} and info["carried_fraction"] == pytest.approx(
        0.5)
    assert info["actions"] == {"carried": 10, "dropped": 30, "mapped": 20} and info["filled_fraction"] == 1.0
    record = store.read(cells["scratch"].run_id)
    assert record["train_info"]["padded_tokens"] / record["train_info"]["tokens"] < 1.05
    assert all(0.3 < mark["eval_accuracy"] < 1 for mark in record["train_info"]["metrics"])


def test_a_module_goes_from_one_llama_to_another_with_other_heads_and_vocabulary(tmp_path):
    planned, store = finished(tmp_path, "+sweep=stories", "method=[lora,adapter]", "grid.seeds=[0]",
                              "grid.budgets=[10]", "eval.limit=60", "grid.inits=[ported,scratch]")
    for cell in planned.cells:
        if cell.init == "ported" and cell.budget == 10:
            info = store.read(cell.run_id)["port_info"]
            assert info["layer_map"] == {"decoder": [[0], [1], [3],
                                                     [4]]} and info["carried_fraction"] == pytest.approx(0.8)
            assert ("padded" in info["actions"]) == (cell.method == "lora")


def test_real_sentences_in_three_classes_of_length(tmp_path):
    """Restaurant reviews, relabelled by rule: up to 7 words, up to 13, more."""
    folder, names = tmp_path / "lengths", ("short", "medium", "long")
    folder.mkdir()
    for split in ("train", "validation", "test"):
        rows = [json.loads(line)["text"] for line in (SHARED / "data/uci_yelp" / f"{split}.jsonl").open()]
        kinds = [sum(len(text.split()) > bound for bound in (7, 13)) for text in rows]
        (folder / f"{split}.jsonl").write_text("".join(
            json.dumps({"text": text, "label": names[kind]}) + "\n"
            for text, kind in zip(rows, kinds, strict=True)))
    planned, store = finished(
        tmp_path, f"+data.lengths.path={folder}", f"+data.lengths.labels=[{','.join(names)}]",
        "grid.pairs=[[stories260k,aidreams260k]]", "grid.data=lengths", "grid.study_data=[lengths]",
        "method=lora", "grid.inits=[ported,scratch]", "grid.seeds=[0]", "grid.budgets=[40]", "eval.limit=120",
        "eval.metrics=[accuracy,f1,auc]", "task.template='{text} length :'", "similarity=false",
        "engine=inprocess", "engine.device=cpu", "yes=true")
    for run_id, run in planned.runs.items():
        marks = store.read(run_id)["train_info"]["metrics"]
        assert all(0 < mark["eval_auc"] < 1 and 0 <= mark["eval_f1"] < 1 for mark in marks)
        assert store.predictions(run_id)["margin"].shape == (len(marks), 120, 2)
        if run.init.kind == "scratch" and len(marks) > 1:
            assert marks[-1]["eval_loss"] < marks[0]["eval_loss"] and marks[-1]["eval_invalid_rate"] < 0.1
