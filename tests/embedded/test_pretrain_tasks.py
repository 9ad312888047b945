"""Sets and hosts of the generated tasks as shipped, how they are made, and students made of a host's own
text."""

import hashlib
import json
import sys

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional as F

from portability.core.errors import UserError
from portability.core.paths import EMBEDDED
from portability.embedded.recipes import generated, pretrain_tasks
from portability.embedded.recipes.pretrain_tasks import (
    NONE,
    batches,
    build_tokenizer,
    corpus_rows,
    loss_on,
    make_host,
    make_sets,
    make_student,
    sampled_rows,
    train,
)
from portability.hosts.host import load_host, load_plain
from portability.hosts.sources import HostSource, describe
from support.tiny import model, tokenizer

CONF = yaml.safe_load(pretrain_tasks.CONF.read_text())
HOSTS = ("tasks-large", "tasks-base")
OPTIMISER = {**CONF["optimiser"], "warmup": 5}
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
         "head_dim": 8, "intermediate_size": 16}
STUDENT = {"shape": SMALL, "sample": 4, "rows": 40, "held_out": 20, "length": 12, "together": 15, "steps": 40,
           "batch": 8, "lr": 1e-2}
TINY = {"seed": 0, "text": {"lines": 300, "length": 16}, "optimiser": OPTIMISER, "student": STUDENT,
        "hosts": {"one": {"shape": SMALL, "sample": 1, "steps": 20, "batch": 8, "lr": 1e-2},
                  "two": {"shape": SMALL, "sample": 2, "steps": 1, "batch": 2, "lr": 1e-2}}}


def small():
    """A Llama of one layer with random weights, the same every time; begin and end token are 1."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model("llama", 16, 1, 2).eval()


def record_of(name):
    return json.loads((EMBEDDED / "hosts" / name / "pretrain.json").read_text())


def bytes_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jsonl")}


# ---- what is shipped


@pytest.mark.parametrize("name", HOSTS)
def test_shipped_sets_are_rebuilt_byte_for_byte_with_a_hosts_seed(name, tmp_path):
    make_sets({"seed": record_of(name)["seed"]}, tmp_path)
    made = bytes_of(tmp_path / "data")
    assert len(made) == 6
    assert made == {path: (EMBEDDED / "data" / path).read_bytes() for path in made}


@pytest.mark.parametrize("name", HOSTS)
def test_a_shipped_host_was_made_with_the_numbers_in_conf_and_learnt(name):
    record = record_of(name)
    expected = {**CONF["hosts"][name], **CONF["text"], "seed": CONF["seed"]}
    assert {key: record[key] for key in expected} == expected
    assert record["updates"] == expected["steps"]
    assert record["losses_per_100"][-1] < 0.5 * record["losses_per_100"][0]


def test_the_text_that_was_read_is_that_of_the_seed():
    record = record_of("tasks-large")
    lines = generated.corpus(record["seed"], record["lines"])
    ids = {word: place for place, word in enumerate(["<pad>", "</s>", "<unk>", *generated.vocabulary()])}
    flat = [ids[word] for line in lines for word in [*line.split(), "</s>"]]
    whole = np.array(flat[: len(flat) - len(flat) % record["length"]], dtype="<i8")
    assert {record_of(name)["text_sha256"] for name in HOSTS} == {hashlib.sha256(whole.tobytes()).hexdigest()}


def test_the_teacher_is_wider_and_deeper_and_both_have_room():
    large, base = (describe(HostSource(name, path=f"embedded:{name}")) for name in HOSTS)
    assert large.shape.family == base.shape.family == "llama" and large.fingerprint != base.fingerprint
    assert large.shape.hidden > base.shape.hidden and large.shape.layers["decoder"] > base.shape.layers[
        "decoder"]
    assert large.shape.head_dim == base.shape.head_dim
    for name in HOSTS:
        folder = EMBEDDED / "hosts" / name
        assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] >= 128
        assert sum(path.stat().st_size for path in folder.iterdir()) < 2_000_000


@pytest.mark.parametrize("name", HOSTS)
def test_a_shipped_host_loads_and_knows_its_text_but_not_other_text(name):
    host = load_host(describe(HostSource(name, path=f"embedded:{name}")))
    assert host.tokenizer.get_vocab() == build_tokenizer().get_vocab()
    assert host.tokenizer("12 + 3 =").input_ids == host.tokenizer("12 + 3 =",
                                                                  add_special_tokens=False).input_ids
    rows, other = (corpus_rows(host.tokenizer, seed, 200, CONF["text"]["length"]) for seed in (0, 1))
    known = loss_on(host.model, rows)
    assert abs(known - record_of(name)["losses_per_100"][-1]) < 0.15
    assert loss_on(host.model, other) > known + 0.2  # facts of another world
    shuffled = rows.flatten()[torch.randperm(rows.numel(),
                                             generator=torch.Generator().manual_seed(0))].view_as(rows)
    assert loss_on(host.model, shuffled) > 2 * known


# ---- the recipe


def test_rows_are_the_text_and_nothing_is_unknown():
    tok, lines = build_tokenizer(), list(generated.corpus(3, 100))
    rows = corpus_rows(tok, 3, 100, 16)
    words = " </s> ".join(lines).split() + ["</s>"]
    assert rows.shape == (len(words) // 16, 16)
    assert tok.convert_ids_to_tokens(rows.flatten().tolist()) == words[: rows.numel()]


def test_training_lowers_the_loss_and_reads_every_row_before_any_again():
    host, spec = small(), {"sample": 0, "steps": 110, "batch": 8, "lr": 1e-2}
    rows = torch.arange(3, 27).repeat(20, 1).roll(1, 0)
    rows[:, 0] = torch.arange(20)
    before = loss_on(host, rows)
    found = train(host, rows, spec, OPTIMISER, "toy")
    assert loss_on(host, rows) < 0.3 * before and len(found["losses_per_100"]) == 2 and found[
        "updates"] == 110
    order = torch.cat([batch["input_ids"][:, 0] for _, batch in batches(rows, spec, 5)])
    for epoch in order[:880].split(20):
        assert sorted(epoch.tolist()) == list(range(20))
    assert not torch.equal(order[:20], order[20:40])


def test_a_loss_is_the_mean_over_tokens_that_are_there():
    host = small()
    rows = torch.randint(3, 20, (5, 9), generator=torch.Generator().manual_seed(0))
    rows[1, 4:], rows[4, 2:] = NONE, NONE
    with torch.no_grad():
        each = [-F.log_softmax(host(row[None, : at + 1]).logits[0, -1], -1)[row[at + 1]]
                for row in rows for at in range(8) if row[at + 1] != NONE]
    assert len(each) == 3 * 8 + 3 + 1
    assert loss_on(host, rows, 2) == pytest.approx(float(torch.stack(each).mean()), rel=1e-5)


def test_the_recipe_repeats_itself(tmp_path):
    for out in ("a", "b"):
        record = make_host("one", TINY, tmp_path / out)
    one, two = (tmp_path / out / "hosts" / "one" for out in ("a", "b"))
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    assert json.loads((two / "pretrain.json").read_text()) == record
    make_host("one", {**TINY, "seed": 1}, tmp_path / "c")
    assert (one / "model.safetensors").read_bytes() != (tmp_path
                                                        / "c/hosts/one/model.safetensors").read_bytes()


# ---- students made of a host's own text


def test_texts_follow_the_hosts_probabilities():
    host = small()
    with torch.no_grad():
        host.lm_head.weight.mul_(40)  # probabilities far from even
        expected = host(torch.tensor([[1]])).logits[0, -1].softmax(-1)
    rows = sampled_rows(host, 4000, 2, 1000, 0)
    found = torch.bincount(rows[:, 1], minlength=len(expected)) / len(rows)
    assert (rows[:, 0] == 1).all() and expected.max() > 0.1
    assert float((found - expected).abs().max()) < 0.03  # four times the standard error of one half
    assert not torch.equal(rows, sampled_rows(host, 4000, 2, 1000, 1))
    assert torch.equal(rows, sampled_rows(host, 4000, 2, 1000, 0))


def test_nothing_stands_behind_an_end_token_and_texts_are_written_token_by_token():
    host = small()
    with torch.no_grad():
        host.lm_head.weight.mul_(1e5)  # the likeliest token every time
    read = torch.tensor([[1]])
    for _ in range(9):
        with torch.no_grad():
            read = torch.cat([read, host(read).logits[:, -1].argmax(-1, keepdim=True)], 1)
    host.generation_config.eos_token_id = [int(read[0, 4]), 29]
    first = read[0, 1:].tolist().index(int(read[0, 4])) + 1
    rows = sampled_rows(host, 3, 10, 2, 0)
    assert rows.tolist() == 3 * [read[0, : first + 1].tolist() + (9 - first) * [NONE]]


def test_a_student_of_a_tiny_teacher(make_host, tmp_path):
    teacher, folder = make_host("llama", 32, 2, 4), tmp_path / "small"
    record = make_student(teacher.source, folder, TINY)
    student = load_host(describe(HostSource("small", path=str(folder))))
    assert student.spec.shape.hidden == 16 and student.spec.shape.layers["decoder"] == 1
    assert student.tokenizer.get_vocab() == tokenizer().get_vocab()
    config, whole = student.model.config, load_plain(teacher)
    assert {key: getattr(config, key) for key in ("bos_token_id", "eos_token_id", "max_position_embeddings",
                                                  "vocab_size")} == {
        key: getattr(whole.config, key) for key in ("bos_token_id", "eos_token_id", "max_position_embeddings",
                                                    "vocab_size")}
    assert json.loads((folder / "pretrain.json").read_text()) == record and record[
        "teacher"] == teacher.fingerprint
    held_out = sampled_rows(whole, 20, 12, 15, pretrain_tasks.stream_seed(4, "held out"))
    assert loss_on(whole, held_out) == pytest.approx(record["teacher_loss"], abs=1e-3)
    assert loss_on(student.model, held_out) == pytest.approx(record["held_out_loss"], abs=0.02)  # fp16
    assert 40 * 2 <= record["tokens"] <= 40 * 12
    with pytest.raises(UserError, match="is not empty; give another folder"):
        make_student(teacher.source, folder, TINY)


def test_teachers_that_cannot_be_used_are_named(make_host, load, tmp_path):
    for hidden, layers in ((16, 2), (32, 1)):
        with pytest.raises(UserError, match="is not smaller than its teacher"):
            make_student(make_host("llama", hidden, layers, 2).source, tmp_path / "x", TINY)
    with pytest.raises(UserError, match="a gpt2 host; --from takes a llama"):
        make_student(make_host("gpt2").source, tmp_path / "x", TINY)
    host = small()
    with pytest.raises(UserError, match="texts of 3000 tokens exceed the teacher's 2048 positions"):
        sampled_rows(host, 1, 3000, 1, 0)
    host.config.bos_token_id = None
    with pytest.raises(UserError, match="need a begin token and an end token"):
        sampled_rows(host, 1, 4, 1, 0)


# ---- the command


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["pretrain_tasks", *map(str, arguments)])
    pretrain_tasks.main()


def test_the_command_makes_sets_and_the_hosts_asked_for(monkeypatch, tmp_path, make_host, capsys):
    conf, out = tmp_path / "conf.yaml", tmp_path / "out"
    conf.write_text(yaml.safe_dump(TINY))
    run(monkeypatch, "--conf", conf, "--out", out, "--only", "two")
    assert [path.name for path in (out / "hosts").iterdir()] == ["two"] and len(bytes_of(out / "data")) == 6
    run(monkeypatch, "--conf", conf, "--from", make_host("llama", 32, 2, 4).source, "--to",
        tmp_path / "small")
    assert (tmp_path / "small" / "model.safetensors").is_file()
    for arguments, said in ((("--from", out), "--from and --to go together"),
                            (("--conf", conf, "--out", out, "--only", "three"), "unknown host of conf.yaml "
                             "'three'"),
                            (("--conf", conf, "--from", out, "--to", out), "no config.json in")):
        with pytest.raises(SystemExit, match="2"):
            run(monkeypatch, *arguments)
        assert said in capsys.readouterr().err
