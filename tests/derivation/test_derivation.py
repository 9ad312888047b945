"""Hosts derived from other hosts: known answers, repetition, and the folder that is kept."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from portability.core.architectures import FAMILIES
from portability.core.errors import UserError
from portability.derivation import RECORD, derive
from portability.hosts.host import load_host, load_plain
from portability.hosts.recipes import CHANGES, RULES, Continued, Recipe, made, place_of, read_recipe
from portability.hosts.sources import HostSource, describe
from support.hidden import answers, strong_host
from support.tiny import sentences

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PORTABILITY_CACHE", str(tmp_path / "cache"))


def text_file(tmp_path, repeat=1):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in sentences(60, 1) * repeat))
    return path


def derived(parent, name="made", **change):
    """The derived host's description."""
    recipe = read_recipe(name, {"from": parent.name, **change})
    return describe(HostSource(name, path=str(derive(recipe, lambda _: parent))))


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "bert", "gemma3_text", "phi3"])
def test_a_thinned_host_is_its_parent_without_some_layers(family, tmp_path):
    parent = strong_host(tmp_path / "parent", family, layers=5)
    thin = derived(parent, thinned={"layers": 3})
    host = load_host(parent)
    for stack, key in FAMILIES[family].stacks.items():
        names = [name for name, part in host.model.named_modules()
                 if isinstance(part, torch.nn.ModuleList) and len(part) == 5
                 and (len(FAMILIES[family].stacks) == 1 or name.startswith(stack))]
        layers = host.model.get_submodule(names[0])
        kept = torch.nn.ModuleList(layers[i] for i in (0, 2, 4))
        for i, layer in enumerate(kept):  # places in the cache
            for part in layer.modules():
                if hasattr(part, "layer_idx"):
                    part.layer_idx = i
        host.model.set_submodule(names[0], kept)
        setattr(host.model.config, key, 3)
    assert thin.shape.layers == dict.fromkeys(parent.shape.layers, 3)
    assert torch.allclose(answers(load_host(thin)), answers(host), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3", "t5", "phi3", "gemma2"])
def test_units_that_do_nothing_can_be_left_out(family, tmp_path):
    parent = strong_host(tmp_path / "parent", family)
    model, idle = load_plain(parent), torch.arange(0, parent.shape.ffn, 3)
    for name, parameter in model.named_parameters():
        if name.endswith(("down_proj.weight", "DenseReluDense.wo.weight")):
            parameter.data[:, idle] = 0
    model.save_pretrained(parent.source)
    parent = describe(HostSource("parent", path=parent.source))
    narrow = derived(parent, narrowed={"hidden": parent.shape.hidden, "ffn": parent.shape.ffn - len(idle)})
    assert narrow.shape.ffn == parent.shape.ffn - len(idle)
    assert torch.allclose(answers(load_host(narrow)), answers(load_host(parent)), atol=1e-4)


def test_the_narrowed_stream_is_cut_out_of_every_matrix(tmp_path):
    parent = strong_host(tmp_path / "parent", "llama")
    model = load_plain(parent)
    weak = torch.arange(1, 32, 4)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.data[weak] *= 1e-3
            else:
                parameter.data[:, weak] *= 1e-3
    model.save_pretrained(parent.source)
    narrow = derived(describe(HostSource("parent", path=parent.source)), narrowed={"hidden": 24, "ffn": 64})
    kept = torch.tensor([i for i in range(32) if i not in weak])
    own, new = model.state_dict(), load_plain(narrow).state_dict()
    assert narrow.shape.head_dim == parent.shape.head_dim and narrow.shape.hidden == 24
    for name, value in new.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")) or value.ndim == 1:
            assert torch.equal(value, own[name][kept])
        else:
            assert torch.equal(value, own[name][:, kept])


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "phi3"])
def test_a_host_in_a_hidden_basis_computes_the_same_and_looks_otherwise(family, tmp_path):
    parent = strong_host(tmp_path / "parent", family)
    other = derived(parent, hidden={"seed": 1})
    assert torch.allclose(answers(load_host(other)), answers(load_host(parent)), rtol=1e-3, atol=1e-3)
    one, two = (load_plain(spec).get_input_embeddings().weight for spec in (parent, other))
    assert (one - two).norm() > one.norm()


def test_noise_has_the_norm_that_is_asked_for(tmp_path):
    parent = strong_host(tmp_path / "parent", "llama")
    loud = derived(parent, noised={"share": 0.1, "seed": 3})
    other = strong_host(tmp_path / "other", "llama")
    moved = load_plain(other)
    for parameter in moved.parameters():
        parameter.data *= 1.2
    moved.save_pretrained(other.source)
    other = describe(HostSource("other", path=other.source))
    hosts = {"parent": parent, "other": other}
    folder = derive(read_recipe("like", {"from": "parent", "noised": {"like": "other"}}), hosts.__getitem__)
    like = describe(HostSource("like", path=str(folder)))
    start, far, near = (load_plain(spec).state_dict() for spec in (parent, loud, like))
    for name, value in start.items():
        if value.ndim == 2:
            assert float((far[name] - value).norm() / value.norm()) == pytest.approx(0.1, rel=1e-3)
            assert float((near[name] - value).norm() / value.norm()) == pytest.approx(0.2, rel=1e-3)
        else:
            assert torch.equal(far[name], value)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounded_matrices_are_whole_numbers_times_a_scale(bits, tmp_path):
    parent = strong_host(tmp_path / "parent", "llama")
    coarse = derived(parent, quantised={"bits": bits, "group": 8})
    start, found = (dict(load_plain(spec).named_parameters()) for spec in (parent, coarse))
    top = 2 ** (bits - 1) - 1
    for name, value in start.items():
        if "proj" not in name:
            assert torch.equal(found[name], value)
            continue
        groups, own = (one.unflatten(1, (-1, 8)).double() for one in (found[name], value))
        scale = own.abs().amax(-1, keepdim=True) / top
        steps = groups / scale
        assert torch.allclose(steps, steps.round(), atol=1e-3) and steps.abs().max() <= top + 1e-3
        assert ((groups - own).abs() <= scale * 0.501).all()


def test_training_further_follows_a_plain_loop_and_repeats(tmp_path):
    parent, texts = strong_host(tmp_path / "parent", "llama"), text_file(tmp_path)
    how = {"texts": str(texts), "updates": 4, "windows": 3, "length": 12, "learning_rate": 1e-3, "seed": 5}
    first, again = (derived(parent, name, continued=how) for name in ("first", "again"))
    assert first.fingerprint == again.fingerprint != parent.fingerprint
    import random

    host, ids = load_host(parent), []
    for line in texts.open():
        ids += [*host.tokenizer(json.loads(line)["text"])["input_ids"], host.tokenizer.eos_token_id]
    drawn, model = random.Random(5), host.model.requires_grad_(True).train()
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(4):
        windows = [drawn.randrange(len(ids) - 12) for _ in range(3)]
        rows = torch.tensor([ids[at:at + 12] for at in windows])
        logits = model(rows).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].reshape(-1))
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
    for name, value in load_plain(first).named_parameters():
        assert torch.allclose(value, dict(model.named_parameters())[name], atol=1e-5)


def test_a_derived_host_is_made_once_and_named_by_all_that_it_follows_from(tmp_path, monkeypatch):
    parent, texts = strong_host(tmp_path / "parent", "llama"), text_file(tmp_path)
    change = Continued(str(texts), 1, windows=2, length=8)
    recipe = Recipe("further", "parent", change)
    with pytest.raises(UserError, match=r"not made here yet; make it once: portability derive further"):
        made(recipe, lambda _: parent)
    place = derive(recipe, lambda _: parent)
    told = json.loads((place / RECORD).read_text())
    assert told["parent"] == parent.fingerprint and told["continued"]["texts"] == "texts.jsonl"
    assert str(tmp_path) not in (place / RECORD).read_text()
    monkeypatch.setattr("portability.derivation.load_plain", lambda *_: pytest.fail("made twice"))
    assert derive(recipe, lambda _: parent) == made(recipe, lambda _: parent) == place
    others = {place_of(replace(recipe, change=replace(change, seed=1)), lambda _: parent),
              place_of(recipe, lambda _: replace(parent, fingerprint="other"))}
    text_file(tmp_path, repeat=2)
    others.add(place_of(recipe, lambda _: parent))
    monkeypatch.setitem(RULES, "thinned", 2)
    assert place_of(recipe, lambda _: parent) in others
    monkeypatch.setitem(RULES, "continued", 2)
    others.add(place_of(recipe, lambda _: parent))
    assert len(others) == 4 and place not in others


def test_todays_names_of_derived_hosts_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("PORTABILITY_CACHE", "/cache")
    host = SimpleNamespace(fingerprint="0123")
    places = {change: place_of(Recipe("x", "parent", CHANGES[change](**how)), lambda _: host).name
              for change, how in (("thinned", {"layers": 20}), ("hidden", {}), ("noised", {"like": "books"}))}
    assert places == {"thinned": "x-0a80897a968f6147", "hidden": "x-9c2fea91b03bcce6",
                      "noised": "x-642e13d9d388d37f"}


@pytest.mark.parametrize("kind", ["continued", "distilled"])
def test_dropout_is_that_of_the_host_and_drawn_by_the_recipes_seed(kind, tmp_path):
    parent, texts = strong_host(tmp_path / "parent", "gpt2"), text_file(tmp_path)
    how = {"texts": str(texts), "updates": 2, "length": 12, "learning_rate": 1e-3}
    how |= {"like": "parent"} if kind == "distilled" else {}
    assert load_plain(parent).config.resid_pdrop == 0.1

    def made(name, seed=0):
        torch.rand(1)  # whatever was drawn before
        before = torch.get_rng_state()
        spec = derived(parent, name, **{kind: how | {"seed": seed}})
        assert torch.equal(torch.get_rng_state(), before)
        return spec.fingerprint

    first = made("first")
    assert made("again") == first != made("other", seed=1)
    config = Path(parent.source) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | dict.fromkeys(
        ("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)))
    quiet = describe(HostSource("parent", path=parent.source))
    weights = [(Path(derive(read_recipe(name, {"from": "parent", kind: how}), lambda _, one=one: one))
                / "model.safetensors").read_bytes() for name, one in (("first", parent), ("none", quiet))]
    assert weights[0] != weights[1]  # dropout is on

def test_a_host_that_is_cut_short_is_not_taken_for_one(tmp_path, monkeypatch):
    parent = strong_host(tmp_path / "parent", "llama", layers=3)
    recipe = read_recipe("thin", {"from": "parent", "thinned": {"layers": 2}})

    def full(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr("portability.derivation._save", full)
        with pytest.raises(OSError, match="disk full"):
            derive(recipe, lambda _: parent)
    hosts = tmp_path / "cache" / "hosts"
    assert not folders(hosts)
    place = place_of(recipe, lambda _: parent)
    (place.with_name(f"{place.name}.draft") / "sub").mkdir(parents=True)  # of a process that was killed
    assert (derive(recipe, lambda _: parent) / RECORD).is_file()
    assert folders(hosts) == [place]


def folders(place):
    return [path for path in place.iterdir() if path.is_dir()] if place.is_dir() else []


def test_two_commands_at_once_make_a_host_once(tmp_path, monkeypatch):
    parent = strong_host(tmp_path / "parent", "llama", layers=3)
    recipe = read_recipe("thin", {"from": "parent", "thinned": {"layers": 2}})
    loads, load = [], load_plain

    def slow(spec):
        loads.append(spec.name)
        time.sleep(0.3)  # in which the other one begins
        return load(spec)

    monkeypatch.setattr("portability.derivation.load_plain", slow)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: derive(recipe, lambda _: parent), range(2))
    assert one == other and loads == ["parent"]


@pytest.mark.parametrize("family, change, said", [
    ("llama", {}, "must name the host it is made from and one change"),
    ("llama", {"thined": {"layers": 2}}, "did you mean 'thinned'"),
    ("llama", {"thinned": {"layers": 9}}, "thinned.layers must be from 2 to 2"),
    ("llama", {"thinned": {"layers": 2}, "noised": {"share": 1}}, "one change"),
    ("llama", {"noised": {}}, "either a share or a host"),
    ("llama", {"noised": {"share": -1.0}}, "must be 0 or more"),
    ("llama", {"quantised": {"bits": 1}}, "from 2 to 8"),
    ("llama", {"narrowed": {"hidden": 99, "ffn": 9}}, "narrowed.hidden must be at most 32"),
    ("gpt2", {"narrowed": {"hidden": 8, "ffn": 9}}, "cannot be narrowed"),
    ("bert", {"hidden": {}}, "has no hidden basis"),
    ("t5", {"hidden": {}}, "has no hidden basis"),
    ("t5", {"continued": {"texts": "TEXTS", "updates": 1}}, "only decoders"),
    ("llama", {"continued": {"texts": "nowhere.txt", "updates": 1}}, "there is no file nowhere.txt"),
    ("llama", {"continued": {"texts": "TEXTS", "updates": 1, "length": 9999}}, "and one window takes 9999"),
    ("gpt2", {"continued": {"texts": "TEXTS", "updates": 1, "length": 65}}, "the host has 64 positions"),
    ("bert", {"distilled": {"like": "parent", "texts": "TEXTS", "updates": 1, "length": 65}}, "64 positions"),
    ("llama", {"continued": {"texts": "TEXTS", "updates": 1, "learning_rate": -1.0}}, "must be above 0"),
    ("llama", {"continued": {"texts": "TEXTS", "updates": 9, "learning_rate": 1e30, "length": 8}},
     "is nan; lower learning_rate"),
    ("llama", {"distilled": {"like": "parent", "texts": "EMPTY", "updates": 1}}, "holds no text"),
    ("t5", {"distilled": {"like": "parent", "texts": "TEXTS", "updates": 1}}, "only hosts with one stack"),
])
def test_what_cannot_be_done_is_said_in_one_sentence(family, change, said, tmp_path):
    texts = str(text_file(tmp_path))
    (tmp_path / "empty.txt").touch()
    change = json.loads(json.dumps(change).replace("TEXTS", texts).replace("EMPTY", f"{tmp_path}/empty.txt"))
    parent = strong_host(tmp_path / "parent", family)
    with pytest.raises(UserError, match=said) as error:
        derived(parent, **change)
    assert "\n" not in str(error.value) and not folders(tmp_path / "cache" / "hosts")


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_thinned_host_is_healed_towards_its_parents_states(family, tmp_path):
    parent, texts = strong_host(tmp_path / "parent", family, layers=4), text_file(tmp_path)
    thin = derived(parent, "thin", thinned={"layers": 3})
    hosts = {"parent": parent, "thin": thin}

    def healed(updates):
        how = {"like": "parent", "texts": str(texts), "updates": updates, "learning_rate": 1e-2}
        folder = derive(read_recipe("healed", {"from": "thin", "distilled": how}), hosts.__getitem__)
        return json.loads((folder / RECORD).read_text()), describe(HostSource("healed", path=str(folder)))

    told, found = healed(30)
    assert told["last_loss"] < 0.5 * told["first_loss"]

    def far(spec):
        wanted = states(load_host(parent))
        return float((states(load_host(spec)) - wanted).square().sum() / wanted.square().sum())

    assert far(found) < 0.8 * far(thin)


def states(host):
    read = host.tokenizer([row["text"] for row in sentences(20, 9)], padding=True, return_tensors="pt")
    whole = host.model if host.scoring == "head" else host.model.model
    out = whole(input_ids=read["input_ids"], attention_mask=read["attention_mask"]).last_hidden_state
    return out[read["attention_mask"].bool()].detach()


def test_a_host_is_not_trained_towards_one_of_another_width(tmp_path):
    parent, texts = strong_host(tmp_path / "parent", "bert"), text_file(tmp_path)
    wide = strong_host(tmp_path / "wide", "bert", hidden=48)
    recipe = read_recipe("no", {"from": "parent", "distilled": {"like": "wide", "texts": str(texts),
                                                                "updates": 1}})
    with pytest.raises(UserError, match="its hidden_size is 48, and this one's 32"):
        derive(recipe, {"parent": parent, "wide": wide}.__getitem__)
