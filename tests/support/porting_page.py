"""Fills in what the commands of docs/porting.md print, on tiny random hosts that are made for it.

    PYTHONPATH=tests python -m support.porting_page
"""

import contextlib
import io
import json
import re
import shlex
import tempfile
import warnings
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from portability.hosts.host import load_host
from portability.hosts.sources import HostSource, describe
from portability.port import main
from support.blocks import blocks
from support.peft_methods import write_plain
from support.tiny import model, sentences, tokenizer

PAGE = Path(__file__).parents[2] / "docs/porting.md"
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.M | re.S)
MEASURED = re.compile(r"\d[\d.e-]*")  # digits of what is measured: another machine rounds otherwise
HOSTS = {"llama-32": ("llama", 32, 2, 4), "llama-64": ("llama", 64, 4, 8),
         "mistral-32": ("mistral", 32, 4, 4), "gpt2-32": ("gpt2", 32, 2, 4)}
ADAPTERS = {"my-lora": "lora", "my-vera": "vera"}


def prepare(folder: Path) -> None:
    """The hosts, adapters and examples that the page's commands name."""
    with torch.random.fork_rng():
        for name, sizes in HOSTS.items():
            torch.manual_seed(0)
            host = model(*sizes)
            if name == "mistral-32":  # as if it had been trained on from llama-32
                base = AutoModelForCausalLM.from_pretrained(folder / "llama-32")
                host.set_input_embeddings(base.get_input_embeddings())
            host.save_pretrained(folder / name)
            tokenizer().save_pretrained(folder / name)
    base = describe(HostSource("llama-32", path=str(folder / "llama-32")))
    for name, kind in ADAPTERS.items():
        write_plain(folder / name, load_host(base), kind)
        path = folder / name / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "llama-32"}))
    rows = "".join(json.dumps(row) + "\n" for row in sentences(60, 3))
    (folder / "test.jsonl").write_text(rows)
    texts = "".join(json.dumps({"text": row["text"]}) + "\n" for row in sentences(120, 4))
    (folder / "texts.jsonl").write_text(texts)


def filled(text: str) -> str:
    """The page with what its commands print here, one after another; then its Python is run."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepare(Path(folder))
        with contextlib.chdir(folder):
            text = BLOCK.sub(lambda found: f"```console\n{_printed(found[1])}```", text)
            for block in blocks(text):
                if block.language == "python":
                    exec(compile(block.text, PAGE.name, "exec"), {})
            return text


def _printed(block: str) -> str:
    command = block.splitlines()[0]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        main(shlex.split(command.removeprefix("$ portability port")))
    return f"{command}\n{out.getvalue()}"


def compared(text: str) -> str:
    """The page without the digits of what is measured."""
    return "\n".join(MEASURED.sub("#", line) if re.match("bare|ported|turned into", line) else line
                     for line in text.splitlines())


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
