"""How alike two hosts are: known answers, computed another way."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from portability.core.errors import UserError
from portability.core.specs import HostShape, TaskSpec
from portability.hosts.host import load_host
from portability.hosts.sources import HostSource, describe
from portability.porting.similarity import cka, compare_hosts, gram, readings, shape_distance, weight_distance
from support.tiny import FAMILIES, TASK, sentences

TEXTS = [row["text"] for row in sentences(48, 3)]
SHARED = Path(__file__).parents[3] / "shared"


# ---- features


def song(x, y):
    """Unbiased HSIC of linear kernels, as Song et al. (2012), equation 5, states it."""
    k, m, n = x @ x.T, y @ y.T, len(x)
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    one = np.ones(n)
    return (np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * one @ k
            @ m @ one) / (
        n * (n - 3))


def plain(x, y):
    """Linear CKA of Kornblith et al. (2019), with its bias."""
    x, y = x - x.mean(0), y - y.mean(0)
    return np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def ours(x, y):
    return cka(gram(torch.from_numpy(x)), gram(torch.from_numpy(y)))


def test_cka_agrees_with_the_published_formula():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(40, 12)) + 5
    y = np.concatenate([x[:, :5] @ draw.normal(size=(5, 9)), draw.normal(size=(40, 4))], 1) - 3
    expected = song(x, y) / math.sqrt(song(x, x) * song(y, y))
    assert ours(x, y) == pytest.approx(expected, abs=1e-9) and 0.1 < expected < 0.9


def test_cka_does_not_see_rotation_scale_and_shift():
    draw = np.random.default_rng(1)
    x, y = draw.normal(size=(30, 8)), draw.normal(size=(30, 6))
    turn = np.linalg.qr(draw.normal(size=(8, 8)))[0]
    assert ours(x, x) == pytest.approx(1, abs=1e-12) == ours(x, 7 * x @ turn - 2)
    assert ours(3 * x @ turn + 1, y) == pytest.approx(ours(x, y), abs=1e-9)
    # another scale of each direction is a difference
    assert abs(ours(x @ np.diag(np.geomspace(1, 100, 8)), x)) < 0.9


def test_wide_unrelated_features_are_not_taken_for_alike():
    draw = np.random.default_rng(2)
    x, y = draw.normal(size=(64, 512)), draw.normal(size=(64, 512))
    assert plain(x, y) > 0.85 and abs(ours(x, y)) < 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_is_read_as_if_it_stood_alone(make_host, family):
    spec = make_host(family, 32, 2, 4, 0)
    host, found = load_host(spec), readings(spec, TEXTS[:20], TASK)
    text, answer = [], []
    for one in TEXTS[:20]:
        ids = torch.tensor([host.tokenizer(f"{one} answer :")["input_ids"]])
        more = {"decoder_input_ids": torch.zeros(1, 1, dtype=torch.long)} if family == "t5" else {}
        with torch.no_grad():
            out = host.model(input_ids=ids, output_hidden_states=True, **more)
        text.append((out.encoder_hidden_states if family == "t5" else out.hidden_states)[-1][0].mean(0))
        answer.append((out.decoder_hidden_states if family == "t5" else out.hidden_states)[-1][0, -1])
    assert set(found) == ({"text"} if family in ("bert", "roberta") else {"text", "answer"})
    for reading, states in (("text", text), ("answer", answer)):
        if reading in found:
            assert len(found[reading]) == 2 and cka(found[reading][-1],
                                                    gram(torch.stack(states))) == pytest.approx(1, abs=1e-5)


# ---- two hosts


@pytest.mark.parametrize("family", FAMILIES)
def test_a_host_is_like_itself_and_less_like_another(make_host, family):
    one, other = make_host(family, 32, 2, 4, 0), make_host(family, 48, 3, 4, 1)
    known = {}
    same, apart, back = (compare_hosts(*two, TEXTS, TASK, known)
                         for two in ((one, one), (one, other), (other, one)))
    assert same["cka"] == pytest.approx(1, abs=1e-9) and same["weight_distance"] == same[
        "shape_distance"] == 0
    assert len(known) == 2 and {k: v for k, v in back.items() if k != "seconds"} == {
        k: v for k, v in apart.items() if k != "seconds"}, "the order of the hosts made a difference"
    assert apart["cka"] < 0.99 and 0.9 < apart["weight_distance"] < 1.1 and 0 < apart["compared_fraction"] < 1
    assert apart["texts"] == len(TEXTS) and "/" not in json.dumps(apart)
    assert same["rotation"] == pytest.approx(0, abs=1e-5) and apart["rotation"] is None  # the widths differ
    assert len(apart["cka_layers"]) == 2 * (1 if family in ("bert", "roberta") else 2)


def test_hosts_of_other_families_are_compared_without_their_weights(make_host):
    found = compare_hosts(make_host("t5", 32, 2, 4, 0), make_host("bert", 32, 3, 4, 0), TEXTS, TASK)
    assert found["weight_distance"] is None and found["compared_fraction"] == 0 and "name" in found[
        "weight_reason"]
    assert [layer["reading"] for layer in found["cka_layers"]] == ["text", "text"] and -0.2 < found["cka"] < 1


def test_the_distance_of_weights_agrees_with_a_slow_loop(make_host):
    small_, large = make_host("t5", 32, 2, 4, 0), make_host("t5", 48, 3, 4, 1)
    a, b = (load_file(Path(host.source) / "model.safetensors") for host in (small_, large))
    difference = squares = count = 0
    for name, theirs in a.items():
        if ".block." not in name or theirs.ndim != 2:
            continue
        number = int(name.split(".")[2])
        partner = b.get(name.replace(f".block.{number}.", f".block.{[0, 2][number]}."))
        for i in range(min(theirs.shape[0], partner.shape[0])):
            for j in range(min(theirs.shape[1], partner.shape[1])):
                x, y = float(theirs[i, j]), float(partner[i, j])
                difference, squares, count = difference + (x - y) ** 2, squares + x * x + y * y, count + 1
    distance, fraction, reason = weight_distance(small_, large)
    assert distance == pytest.approx(math.sqrt(difference / squares), rel=1e-6) and reason is None
    assert fraction == pytest.approx(count / sum(v.size for v in b.values()))


def test_the_distance_of_shapes_is_a_mean_of_doublings():
    base = HostShape("t5", {"encoder": 2, "decoder": 2}, 64, 128, 4, 4, 16)
    wide = HostShape("t5", {"encoder": 2, "decoder": 8}, 128, 64, 4, 4, 16)
    assert shape_distance(base, base) == 0 and shape_distance(base, wide) == shape_distance(wide,
                                                                                            base) == (2 + 1
                                                                                                      + 1) / 6
    # by the stack that both have
    assert shape_distance(base, HostShape("bert", {"encoder": 4}, 64, 128, 4, 4, 16)) == 1 / 5
    assert shape_distance(HostShape("bert", {"encoder": 4}, 64, 128, 8, 8, 8),
                          HostShape("llama", {"decoder": 2}, 64, 128, 8, 4, 8)) == 1 / 5


def test_what_cannot_be_compared_is_one_sentence(make_host, tmp_path):
    host, other = make_host("bert", 32, 2, 4, 0), tmp_path / "spoiled"
    with pytest.raises(UserError, match="at least 4 texts, got 3"):
        compare_hosts(host, host, TEXTS[:3], TASK)
    with pytest.raises(UserError, match="has 64 positions"):
        readings(host, TEXTS, TaskSpec("{text}", ("negative", "positive"), 65))
    shutil.copytree(host.source, other)
    weights = load_file(other / "model.safetensors")
    weights["encoder.layer.1.output.dense.weight"] = weights["encoder.layer.1.output.dense.weight"] * np.nan
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    spoiled = describe(HostSource("spoiled", path=str(other)))
    with pytest.raises(UserError, match="'spoiled' are not finite"):
        readings(spoiled, TEXTS, TASK)
    with pytest.raises(UserError, match="not finite"):
        weight_distance(host, spoiled)


def test_the_embedded_hosts_are_told_apart():
    task = TaskSpec("question : negative or positive ? {text} answer :", ("negative", "positive"), 128)
    raw, tuned, other = (describe(HostSource(name, path=f"embedded:{name}"))
                         for name in ("nano-raw-base", "nano-tuned-base", "nano-other-base"))
    texts = [f"the {noun} was {word} and we left {end} ." for noun in ("film", "plot", "acting", "cast",
                                                                       "music", "story")
             for word in ("superb", "dull", "clever", "tedious") for end in ("happy", "early")]
    known = {}
    lineage, strangers = (compare_hosts(raw, host, texts, task, known) for host in (tuned, other))
    assert lineage["weight_distance"] < 0.1 and strangers["weight_distance"] > 0.95
    assert lineage["cka"] > strangers["cka"] + 0.05 and lineage["shape_distance"] == strangers[
        "shape_distance"] == 0


def test_real_hosts_of_one_lineage_are_found_in_layers_and_weights():
    if not (SHARED / "hosts").is_dir():
        pytest.skip("needs ../shared with real hosts")
    whole, part = (describe(HostSource(name, path=str(SHARED / "hosts" / name)))
                   for name in ("minilm-l6", "minilm-l3-derived"))
    texts = [json.loads(line)["text"]
             for line in (SHARED / "data/sst2/train.jsonl").read_text().splitlines()[:64]]
    found = compare_hosts(whole, part, texts, TaskSpec("{text}", ("negative", "positive"), 128))
    assert found["cka"] > 0.8 and found["weight_distance"] < 0.1  # its three layers were layers 0, 2 and 5
    assert found["shape_distance"] == 1 / 5 and 0.2 < found["compared_fraction"] < 0.3
