"""Our own LoRA, at every site of a host."""

from dataclasses import replace

from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from portability.core.specs import MethodSpec

ALL = ["attention", "ffn", "embedding", "head"]
METHOD = MethodSpec("own", "portability", "LoRA", {"r": 4, "alpha": 6, "sites": ALL}, 3e-3)
KINDS = {"t5": AutoModelForSeq2SeqLM, "gpt2": AutoModelForCausalLM, "llama": AutoModelForCausalLM}


def method(**settings):
    return replace(METHOD, settings={**METHOD.settings, **settings})


def named(parameters):
    return {f"model.{name}": value for name, value in parameters.items()}
