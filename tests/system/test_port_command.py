"""Ten stories of somebody who wants an adapter on another host, by the command itself: each ends with exit
code 0 and a folder that plain peft loads, or with exit code 2 and one sentence, and nothing half written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from portability.hosts.host import load_host, model_class
from portability.hosts.sources import HostSource, describe
from support.peft_methods import write_plain
from support.tiny import WORDS, model, sentences, tokenizer

ROOT = Path(__file__).parents[2]
HOSTS = {"llama": ("llama", 32, 2, 4), "wide": ("llama", 64, 4, 8), "other": ("llama", 32, 2, 4),
         "bert": ("bert", 32, 2, 4), "roberta": ("roberta", 48, 3, 6), "qwen3": ("qwen3", 48, 3, 6)}
WEIGHTS = "adapter_model.safetensors"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with hosts by the names of HOSTS, and adapters METHOD-NAME that name their bases."""
    root = tmp_path_factory.mktemp("stories")
    for seed, (name, sizes) in enumerate(HOSTS.items()):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model(*sizes).save_pretrained(root / name)
        tokenizer().save_pretrained(root / name)
    for method, base in (("lora", "llama"), ("lora", "wide"), ("lora", "bert"), ("vera", "llama")):
        folder = root / f"{method}-{base}"
        write_plain(folder, load_host(describe(HostSource(base, path=str(root / base)))), method)
        change(folder / "adapter_config.json", base_model_name_or_path=str(root / base))
    (root / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sentences(40, 3)))
    (root / "texts.txt").write_text("".join(row["text"] + "\n" for row in sentences(150, 4)))
    return root


def change(path: Path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def port(made, tmp_path):
    """Words of the command -> the process that it was, started in the folder of `made`; with texts to compare
    the hosts on, unless a strategy is named."""
    def run(*words):
        if "--strategy" not in words:
            words = (*words, "--calibrate", "texts.txt")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        return subprocess.run(
            [sys.executable, "-m", "portability.port", *words, "--out", str(tmp_path / "new/out")], cwd=made,
            capture_output=True, text=True, env=environment)

    return run


def usable(done, tmp_path, host: Path, seen=()) -> PeftModel:
    """The adapter that was written, on its host, by peft alone; `seen` are words that were printed."""
    assert (done.returncode, done.stderr) == (0, "")
    assert all(words in done.stdout for words in seen), done.stdout
    out = tmp_path / "new/out"
    assert os.listdir(tmp_path / "new") == ["out"]
    assert {path.name for path in out.iterdir()} == {"README.md", "adapter_config.json", WEIGHTS}
    family = json.loads((host / "config.json").read_text())["model_type"]
    loaded = PeftModel.from_pretrained(model_class(family).from_pretrained(host), out).eval()
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        first = loaded(input_ids=ids)[0]
        with loaded.disable_adapter():
            assert not torch.allclose(first, loaded(input_ids=ids)[0], atol=1e-4)
    return loaded


def refused(done, tmp_path, said):
    """One sentence, and nothing written."""
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert done.stderr.startswith("portability: ") and done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr and ". " not in done.stderr and not list(tmp_path.iterdir())


# ---- ten stories


@pytest.mark.parametrize(("adapter", "host", "seen"), [
    pytest.param("lora-wide", "llama", "28 tensors dropped", id="down"),
    pytest.param("lora-llama", "wide", "carried of the origin's module: 100.0% of its tensors", id="up"),
    pytest.param("lora-bert", "roberta", "the families differ (bert, roberta)", id="bert-to-roberta"),
    pytest.param("lora-llama", "qwen3", "the families differ (llama, qwen3)", id="llama-to-qwen3"),
    pytest.param("lora-llama", "other", "28 tensors transported: in the receiving", id="same-shape"),
])
def test_a_lora_is_fitted(port, made, tmp_path, adapter, host, seen):
    usable(port(adapter, "--to", host), tmp_path, made / host, [seen])


def test_into_a_quantised_host(port, made, tmp_path):
    """Its shapes are known, and so the adapter is written; what needs its weights is refused."""
    host = tmp_path.parent / f"{tmp_path.name}-quantised"
    shutil.copytree(made / "other", host)
    change(host / "config.json", quantization_config={
        "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"})
    refused(port("lora-llama", "--to", str(host), "--merge"), tmp_path, "are quantised (bitsandbytes)")
    usable(port("lora-llama", "--to", str(host), "--strategy", "pad"), tmp_path, made / "other",
           ["is quantised (bitsandbytes)"])


def test_with_the_tokenizer_changed(port, made, tmp_path):
    host = tmp_path.parent / f"{tmp_path.name}-retokenized"
    shutil.copytree(made / "other", host)
    tok = Tokenizer(models.WordLevel({word: i for i, word in enumerate(reversed(WORDS))}, unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tok, unk_token="<unk>").save_pretrained(host)
    seen = "tokenizers: 3.2% of the receiving vocabulary has the same number in both; a module reads other"
    usable(port("lora-llama", "--to", str(host)), tmp_path, host, [seen])


@pytest.mark.parametrize("size", [0, 5, 700, -40])
def test_from_a_truncated_download(port, made, tmp_path, size):
    folder = tmp_path.parent / f"{tmp_path.name}-cut{size}"
    shutil.copytree(made / "lora-llama", folder)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:size])
    refused(port(str(folder), "--to", "wide"), tmp_path, "copy or download it again")


def test_of_an_unknown_method(port, made, tmp_path):
    folder = tmp_path.parent / f"{tmp_path.name}-unknown"
    shutil.copytree(made / "lora-llama", folder)
    change(folder / "adapter_config.json", peft_type="LORA9")
    refused(port(str(folder), "--to", "wide"), tmp_path, "did you mean 'LORA'?")


def test_with_the_hub_off(port, made, tmp_path):
    folder = tmp_path.parent / f"{tmp_path.name}-named"
    shutil.copytree(made / "lora-llama", folder)
    change(folder / "adapter_config.json", base_model_name_or_path="owner/base")
    done = port(str(folder), "--to", "wide")
    refused(done, tmp_path, "the adapter's base: host 'owner/base': there is no such folder")
    assert "name it: --from HOST" in done.stderr
    refused(port("lora-llama", "--to", "owner/base"), tmp_path, "give its folder")
    usable(port(str(folder), "--to", "wide", "--from", "llama"), tmp_path, made / "wide")


def test_with_the_hub_off_and_the_base_in_its_cache(port, made, tmp_path, monkeypatch):
    cache = tmp_path.parent / f"{tmp_path.name}-cache"
    commit = "a" * 40
    stored = cache / "models--owner--base"
    shutil.copytree(made / "wide", stored / "snapshots" / commit)
    (stored / "refs").mkdir()
    (stored / "refs/main").write_text(commit)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    usable(port("lora-llama", "--to", "owner/base"), tmp_path, made / "wide")
    config = json.loads((tmp_path / "new/out/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/base", commit)


@pytest.mark.parametrize("base", ["wide", "bert"])
def test_of_the_wrong_base(port, tmp_path, base):
    refused(port("lora-llama", "--to", "wide", "--from", base), tmp_path, "it was made on another base")


# ---- options


def test_merged_the_host_answers_as_with_the_adapter(port, made, tmp_path):
    done = port("lora-llama", "--to", "wide")
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        theirs = usable(done, tmp_path, made / "wide")(input_ids=ids).logits
    shutil.rmtree(tmp_path / "new")
    done = port("lora-llama", "--to", "wide", "--merge")
    assert (done.returncode, done.stderr) == (0, "") and os.listdir(tmp_path / "new") == ["out"]
    merged = load_host(describe(HostSource("merged", path=str(tmp_path / "new/out")))).model
    with torch.no_grad():
        assert torch.allclose(merged(input_ids=ids).logits, theirs, atol=1e-5)


def test_a_dry_run_writes_nothing_and_json_is_one_object(port, made, tmp_path):
    done = port("lora-llama", "--to", "wide", "--dry-run", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "") and not list(tmp_path.iterdir())
    assert found["report"]["actions"] == {"transported": 56} and "out" not in found
    found = json.loads(port("lora-llama", "--to", "wide", "--json").stdout)
    assert found["out"] == str(tmp_path / "new/out")
    refused_again = port("lora-llama", "--to", "wide", "--json")
    assert refused_again.returncode == 2 and "is there already" in refused_again.stderr
    assert refused_again.stdout == ""


def test_a_module_that_cannot_be_carried_goes_by_way_of_a_lora(port, made, tmp_path):
    refused(port("vera-llama", "--to", "wide"), tmp_path, "turn it into a LoRA first (--via lora)")
    done = port("vera-llama", "--to", "wide", "--via", "lora", "--rank", "4")
    usable(done, tmp_path, made / "wide", ["turned into a LoRA of rank 4 on its own base; relative error"])


def test_verified_on_examples(port, made, tmp_path):
    words = ["lora-llama", "--to", "wide", "--template", "{text} answer :", "--json", "--verify"]
    done = port(*words, "test.jsonl", "--native", "lora-wide")
    assert (done.returncode, done.stderr) == (0, "")
    scores = json.loads(done.stdout)["scores"]
    assert scores["examples"] == 40 and set(scores["arms"]) == {"bare", "ported", "native"}
    assert all(0 <= arm["low"] <= arm["accuracy"] <= arm["high"] <= 1 for arm in scores["arms"].values())
    assert "| ported |" in (tmp_path / "new/out/README.md").read_text()
    shutil.rmtree(tmp_path / "new")
    refused(port(*words, "none.jsonl"), tmp_path, "there is no file none.jsonl")
