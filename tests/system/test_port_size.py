"""What a port is said to take against what a fresh process takes for it."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from portability.core.specs import PortSpec
from portability.hosts.devices import without_gaps
from portability.hosts.host import load_host
from portability.hosts.sources import HostSource, describe
from portability.porting import maps
from portability.porting.adapter import caching, load_adapter, port_folder
from portability.porting.calibration import calibration
from portability.porting.size import size_of
from support import peaks
from support.peft_methods import write_plain
from support.tiny import PLAIN, WORDS, tokenizer

PROCRUSTES = PortSpec("p", "procrustes", "stretch")
SITES = ["query", "key", "value", "attention_out", "ffn_up", "ffn_gate", "ffn_down"]


def texts(tokens: int):
    """Texts of the largest length, all of them other ones."""
    draw = torch.Generator().manual_seed(0)
    return calibration("texts", [" ".join(PLAIN[int(one)] for one in torch.randint(len(PLAIN), (128,),
                                                                                   generator=draw))
                                 for _ in range(tokens // 128 + 1)], tokens)


def pair(folder: Path, widths: tuple[int, int], layers: int):
    """An adapter beside every matrix of a Llama, and a Mistral that is wider."""
    folder.mkdir()
    specs = []
    kinds = (LlamaForCausalLM, LlamaConfig), (MistralForCausalLM, MistralConfig)
    for (kind, config), width in zip(kinds, widths, strict=True):
        torch.manual_seed(width)
        sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers,
                 "num_attention_heads": width // 64, "num_key_value_heads": width // 128, "head_dim": 64}
        place = folder / kind.__name__
        kind(config(vocab_size=len(WORDS), eos_token_id=1, bos_token_id=1, **sizes)).save_pretrained(place)
        tokenizer().save_pretrained(place)
        specs.append(describe(HostSource(place.name, path=str(place))))
    write_plain(folder / "lora", load_host(specs[0]), "lora", sites=SITES)
    return load_adapter(folder / "lora"), *specs


def said_and_taken(folder: str, widths: tuple[int, int], layers: int, room: int) -> tuple[float, float, int]:
    """MB of a port by the model, and by the peak of this process above what it held; and passes through the
    texts."""
    assert without_gaps()
    maps.ROOM = room
    small, large = (pair(Path(folder) / str(sizes), *sizes) for sizes in (((128, 256), 1), (widths, layers)))
    for found, tokens in ((small, 1024), (large, 4 * widths[1])):
        size = size_of(*found, PROCRUSTES, texts(tokens))
        before = peaks.begin()
        port_folder(*found, PROCRUSTES, load=caching(), texts=texts(tokens))
    return (size.weights + size.beside) / 1e6, (peaks.peak() - before) / 1e6, size.passes


@pytest.mark.parametrize(("layers", "room", "passes"), [(2, 1 << 30, 1), (3, 1, 3)])
def test_the_model_says_what_a_process_takes_for_a_whole_host(tmp_path, layers, room, passes):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        said, taken, times = pool.submit(said_and_taken, str(tmp_path), (512, 640), layers, room).result()
    assert times == passes and taken > 200
    assert said == pytest.approx(taken, rel=0.15), f"{said:.0f} MB, took {taken:.0f}"
