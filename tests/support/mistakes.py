"""The commonest mistakes, and the sentence that answers each: a test makes them all, docs/faq.md shows them.

    PYTHONPATH=tests python -m support.mistakes
"""

import errno
import json
import re
from pathlib import Path
from typing import NamedTuple

import torch

from portability.hosts.host import load_host
from portability.hosts.sources import HostSource, describe
from portability.planning.plan import plan
from portability.planning.study import facts
from portability.run import compose
from portability.store import Store
from support.peft_methods import write_plain
from support.synthetic import build
from support.tiny import model, sentences, tokenizer, write_set

PAGE = Path(__file__).parents[2] / "docs/faq.md"
BEGIN, END = "<!-- made by tests/support/mistakes.py -->", "<!-- until here -->"
PORT, RUN = "portability port my-lora --to llama-64", "portability run"
FULL = OSError(errno.ENOSPC, "No space left on device", "results/demo")


class Mistake(NamedTuple):
    """What is typed in the folder that `prepare` makes, and what is said; an ellipsis stands for what is not
    compared, and `raised` for what happens while the function of that name works."""

    kind: str
    typed: str
    said: str
    code: int = 2
    raised: tuple[str, BaseException] | None = None


NAMES, PATHS, SHAPES = "Names", "Paths", "Shapes"
DATA, SETTINGS, STOPPED = "Data", "Settings", "Interrupted work"
MISTAKES = (
    Mistake(NAMES, "portability prot my-lora --to llama-64",
            "unknown command 'prot'; choose one of: …; did you mean 'port'?"),
    Mistake(NAMES, f"{PORT} --dryrun", "there is no option --dryrun; did you mean '--dry-run'?"),
    Mistake(NAMES, f"{PORT} --strategy procruste",
            "unknown port strategy 'procruste'; choose one of: …; did you mean 'procrustes'?"),
    Mistake(NAMES, f"{RUN} +sweep=ful",
            "unknown sweep 'ful'; choose one of: …; did you mean '+sweep=full'?"),
    Mistake(NAMES, f"{RUN} demo",
            "cannot read 'demo': a setting is key=value; did you mean '+sweep=demo'?"),
    Mistake(NAMES, f"{RUN} --sweep demo", "there is no option --sweep; type +sweep=NAME"),
    Mistake(NAMES, f"{RUN} grid.seed=[0]",
            "unknown key in grid 'seed'; choose one of: …; did you mean 'grid.seeds=[0]'?"),
    Mistake(NAMES, f"{RUN} method=LoRA",
            "unknown method 'LoRA'; choose one of: …; did you mean 'method=lora'?"),
    Mistake(NAMES, f"{RUN} origin=raw-base",
            "unknown host 'raw-base'; choose one of: …; did you mean 'origin=raw_base'?"),
    Mistake(NAMES, f"{RUN} grid.data=nano_film",
            "unknown data 'nano_film'; choose one of: …; did you mean 'grid.data=nano_films'?"),
    Mistake(NAMES, "portability init mine.yaml --method LoRA --yes",
            "unknown method or folder of an adapter 'LoRA'; choose one of: …; did you mean 'lora'?"),
    Mistake(NAMES, "portability list host",
            "unknown group 'host'; choose one of: …; did you mean 'hosts'?"),

    Mistake(PATHS, "portability analyze result", "there is no folder result; did you mean 'results'?"),
    Mistake(PATHS, f"{RUN} study.yaml",
            "study file study.yaml cannot be read: No such file or directory; portability init study.yaml "
            "writes one"),
    Mistake(PATHS, "portability port my-lora --to lama-64",
            "host 'lama-64': there is no such folder, and it cannot be fetched from the hub: …; fetch "
            "it where there is a network, and give its folder; did you mean 'llama-64'?"),
    Mistake(PATHS, f"{PORT} --out taken", "taken is there already; name a new folder (--out)"),
    Mistake(PATHS, f"{RUN} +host.mine.path=nowhere origin=mine",
            "host 'mine': no config.json in nowhere; set host.mine.path=FOLDER, or host_root=FOLDER"),
    Mistake(PATHS, f"{RUN} host.mine.path=llama-32 origin=mine",
            "unknown key in host 'mine'; choose one of: …; what is new takes a plus: "
            "'+host.mine.path=llama-32'"),
    Mistake(PATHS, f"{RUN} +data.mine.path=nowhere grid.data=mine",
            "data set 'mine': no folder nowhere; set data.mine.path=FOLDER, or data_root=FOLDER"),
    Mistake(PATHS, f"{RUN} --config-dir mine/sweep +sweep=own",
            "--config-dir mine/sweep: files must lie in host/, data/, method/, sweep/, ... of it; name "
            "the folder above, or move them"),

    Mistake(SHAPES, f"{PORT} --strategy copy",
            "cannot copy from 'llama-32' to 'llama-64': decoder has 2 layers and decoder has 4; use pad "
            "or repeat (--strategy pad, or 'grid.ports=[pad]')"),
    Mistake(SHAPES, f"{PORT} --from llama-64",
            "method 'my-lora': parameter … has shape (4, 64), which does not belong to a llama host of "
            "width 64: it was made on another base; name that one (--from HOST, or origin=HOST)"),
    Mistake(SHAPES, f"{PORT} --layer-map skip",
            "…layer map 'skip' only drops layers (2 -> 4); use 'stretch' or 'average'"),
    Mistake(SHAPES, f"{PORT} --layer-map 0,1",
            "…layer map 0,1: the receiving stack has 4 layers, the origin's layers are 0 to 1; "
            "type such as 0,0,1,1"),
    Mistake(SHAPES, f"{PORT} --strategy rebasin",
            "port strategy 'rebasin' …: it matches hosts of one shape, and these differ in …; use "
            "embed, or procrustes with texts"),

    Mistake(DATA, f"{RUN} +data.mine.path=stars grid.data=mine",
            "stars/train.jsonl line 1: the label must be the number 0 or 1 (positive), got 5; name others "
            "in the data set's file, as in labels: [negative, neutral, positive]"),
    Mistake(DATA, f"{RUN} +data.mine.path=columns grid.data=mine",
            "columns/train.jsonl line 1 has no 'text', only review, label; rename it, or name it in the "
            "data set's text_column or label_column"),
    Mistake(DATA, f"{RUN} +data.mine.path=torn grid.data=mine",
            "torn/train.jsonl line 1 is not JSON in UTF-8: …; each line must be one JSON object"),
    Mistake(DATA, f"{RUN} +data.mine.path=one-sided grid.data=mine",
            "one-sided/train.jsonl holds only examples of label 1; both 0 and 1 are needed: add some to "
            "the file"),
    Mistake(DATA, f"{RUN} +data.mine.path=no-test grid.data=mine",
            "data set 'mine': no file no-test/test.jsonl for its test split; write it, or name another "
            "in data.mine.splits"),
    Mistake(DATA, f"{RUN} 'task.label_words=[bad,so,good]'",
            "data set 'nano_films' has 2 labels (0, 1) and 3 label words (bad, so, good); name the "
            "labels in data.nano_films.labels, or as many words in data.nano_films.task.label_words"),

    Mistake(SETTINGS, f"{RUN} 'grid.exclude={{port: pad}}'",
            "grid.exclude must be a list, got {'port': 'pad'}; type 'grid.exclude=[{port: pad}]'"),
    Mistake(SETTINGS, f"{RUN} grid.seeds=3", "grid.seeds must be a list, got 3; type 'grid.seeds=[3]'"),
    Mistake(SETTINGS, f"{RUN} method=lora,prefix",
            "'method=lora,prefix' names several values: an axis of a study takes a list, as in "
            "'grid.seeds=[0,1]' or 'method=[lora,prefix]'; anything else takes one value: repeat the "
            "command for another, with study=NAME"),
    Mistake(SETTINGS, f"{RUN} train.batch_size=many",
            "train.batch_size must be a whole number such as 16, got 'many'"),
    Mistake(SETTINGS, f"{RUN} +sweep=demo --limit few",
            "--limit: must be a whole number of examples from 1 on, got 'few'; portability run --help shows "
            "what it takes"),
    Mistake(SETTINGS, f"{PORT} --seed one", "--seed must be a whole number such as 4, got 'one'"),
    Mistake(SETTINGS, f"{PORT} --rank 4",
            "--rank is an option of --via, which is not given; add that, or leave it out"),

    Mistake(STOPPED, f"{RUN} +sweep=demo",
            "interrupted; finished runs and checkpoints are kept, repeat the command to go on", 130,
            ("portability.run.command", KeyboardInterrupt())),
    Mistake(STOPPED, f"{RUN} +sweep=demo",
            "results/demo: No space left on device; finished runs and checkpoints are kept, repeat the "
            "command when it is put right", 2,
            ("portability.run.command", FULL)),
    Mistake(STOPPED, PORT,
            "interrupted; nothing was written, repeat the command to go on", 130,
            ("portability.port.port_adapter", KeyboardInterrupt())),
    Mistake(STOPPED, f"{RUN} +sweep=smoke train.batch_size=8",
            "study smoke_nano already holds the cell (…) with other settings (…)…; choose another "
            "study=NAME for these settings"),
    Mistake(STOPPED, f"{RUN} --config-dir mine origin=thin method=lora",
            "host 'thin' is derived from 'tasks-large' and was not made here yet; make it once: "
            "portability derive thin"),
    Mistake(STOPPED, "portability export results/toy 123 --out mine-lora",
            "no run 123 in results/toy; give a run id from the study's tables or report"),
    Mistake(STOPPED, "portability analyze empty",
            "no study in empty: nothing was run there yet (portability run +sweep=demo)"),
)


def prepare(folder: Path) -> None:
    """Hosts, an adapter, data sets with faults, sweeps and studies: what the command lines name."""
    with torch.random.fork_rng():
        for name, sizes in {"llama-32": ("llama", 32, 2, 4), "llama-64": ("llama", 64, 4, 8)}.items():
            torch.manual_seed(0)
            model(*sizes).save_pretrained(folder / name)
            tokenizer().save_pretrained(folder / name)
    base = describe(HostSource("llama-32", path=str(folder / "llama-32")))
    write_plain(folder / "my-lora", load_host(base), "lora")
    config = folder / "my-lora" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "llama-32"}))
    _data(folder)
    for place in ("taken", "empty", "mine/sweep", "mine/host"):
        (folder / place).mkdir(parents=True)
    (folder / "mine/sweep/own.yaml").write_text("# @package _global_\nstudy: own\n")
    (folder / "mine/host/thin.yaml").write_text("thin: {derive: {from: tasks-large, thinned: {layers: 2}}}\n")
    build(folder / "results/toy")
    begun = compose(["+sweep=smoke"])
    Store(folder / "results/smoke_nano").expect(plan(begun.grid).cells, facts(begun, "smoke"))


def _data(folder: Path) -> None:
    rows = sentences(40, 5)
    first = {"stars": [rows[0] | {"label": 5}], "columns": [{"review": "fine", "label": 1}],
             "one-sided": [row for row in rows if row["label"]], "no-test": rows, "torn": rows}
    for name, train in first.items():
        write_set(folder / name, train, rows, rows)
    (folder / "torn/train.jsonl").write_text("text,label\nfine,1\n")
    (folder / "no-test/test.jsonl").unlink()


def matches(said: str, wanted: str) -> bool:
    """Whether a sentence is the one wanted."""
    return re.fullmatch(".*".join(map(re.escape, wanted.split("…"))), said) is not None


def section() -> str:
    """The part of the page that shows them."""
    lines = []
    for kind in dict.fromkeys(mistake.kind for mistake in MISTAKES):
        lines += [f"### {kind}", "", "| typed | answered |", "|---|---|"]
        lines += [f"| `{one.typed}`{_happening(one)} | {_cell(one.said)} |" for one in MISTAKES
                  if one.kind == kind]
        lines.append("")
    return "\n".join(lines)


def _happening(mistake: Mistake) -> str:
    if mistake.raised is None:
        return ""
    return ", on a full disk" if isinstance(mistake.raised[1], OSError) else ", then Ctrl-C"


def _cell(said: str) -> str:
    return re.sub(r"([|_*<~])", r"\\\1", said)


def filled(page: str) -> str:
    """The page with that part made anew."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{section()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
