"""The words of every command in one place, so that one thing has one name. Nothing is imported here that does
the work: `--help`, a typo and the Tab key are answered at once.
"""

import argparse
import logging
import re
from pathlib import Path

from portability import __version__
from portability.core.command_line import Command, Parser
from portability.core.paths import PACKAGE

LIST = "a list for an axis of a study, as in 'grid.seeds=[0,1]', and repeat the command for anything else"
SETTINGS = {  # options that other tools have, and what they are here
    "-m": LIST, "--multirun": LIST, "--sweep": "+sweep=NAME", "--dry-run": "mode=plan", "--plan": "mode=plan",
    "--method": "method=NAME", "--methods": "'method=[NAME,NAME]'", "--engine": "engine=NAME",
    "--origin": "origin=HOST", "--receiving": "receiving=HOST", "--data": "grid.data=NAME",
    "--seed": "'grid.seeds=[0]'", "--seeds": "'grid.seeds=[0,1]'", "--study": "study=NAME",
    "--yes": "yes=true", "--out": "results=FOLDER", "--output": "results=FOLDER",
    "--results": "results=FOLDER", "--device": "engine.device=cpu", "--workers": "engine.workers=2",
}
ENDINGS = ".jsonl, .csv, .parquet"  # of data files
QUESTIONS = {  # of init: option -> what is asked, and the default
    "method": ("Method (portability list methods), or the folder of a trained adapter", "lora_peft"),
    "origin": ("Host that modules are trained on (a folder, owner/name of the hub, or one of portability "
               "list hosts)", "nano-raw-base"),
    "receiving": ("Host that receives them (several: blanks between)", "nano-tuned-base"),
    "train": (f"Data to train on ({ENDINGS}, a folder with train and test, or one of portability list data)",
              "nano_films"),
    "test": ("Data to test on (nothing: a fifth of the training data is put aside)", ""),
}
LAYER_MAPS = ("average", "cka", "skip", "stretch", "sum")
METRICS = ("accuracy", "accuracy_calibrated", "f1", "loss", "invalid_rate", "positive_share",
           "largest_share", "auc", "matthews_correlation", "rougeL", "score")  # each with eval_ before it
SHAPES = ("bert-256x4", "llama-1b", "llama-256x4", "llama-64x2", "minilm", "t5-128x4", "t5-256x4", "t5-64x2",
          "t5-base", "t5-small")
PARTS = ("equality", "rivals", "floor", "grid")  # of bench, of a call that names none
FURTHER = ("graphs", "loop", "study")
BY = ("strategy", "pair")  # rows of compare
AGAINST = "scratch"  # the start that gains are held against where no other is asked for
GROUPS = {"hosts": "host", "data": "data", "methods": "method", "sweeps": "sweep", "inits": "init",
          "ports": "port", "host_sets": "host_set", "engines": "engine", "protocols": "protocol",
          "strategies": ""}
ABOUT = "Port PEFT modules between host models, and measure when that helps."
EXAMPLES = (
    "portability run +sweep=demo", "portability init mine.yaml", "portability analyze results/demo",
    "portability port my-lora --to ../larger-model --out my-lora-on-larger", "",
    "portability COMMAND --help shows what a command takes. Exit codes: 0 done, 1 something failed,",
    "2 something must be changed, which one sentence says. Tab completion in bash:",
    '  eval "$(register-python-argcomplete portability)"')


def parser(name: str) -> Parser:
    """The parser of a command."""
    return Parser(COMMANDS[name], prog=f"portability {name}")


def strategies() -> tuple[str, ...]:
    """Names of the strategies that come with the package: a file each."""
    folder = PACKAGE / "porting" / "strategies"
    return tuple(sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")))


def all_parsers() -> Parser:
    """The parser of all commands, for the help and the completion of `portability` itself."""
    return Parser(Command(ABOUT, EXAMPLES, add=_every))


def _every(parser: Parser) -> None:
    parser.prog = "portability"
    parser.add_argument("--version", action="version", version=f"portability {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.line, command=command)


# ---- options that several commands have


def _config_dir(parser: Parser) -> None:
    parser.add_argument("-cd", "--config-dir", action="append", default=[], metavar="DIR", type=Path,
                        help="a folder of your own host/, data/, method/, init/, port/ or sweep/ files")


def _results(parser: Parser) -> None:
    parser.add_argument("results", nargs="?", default="results", type=Path, metavar="RESULTS",
                        help="results folder, or one study's folder (results)")


def _study(parser: Parser) -> None:
    parser.add_argument("study", type=Path, metavar="STUDY", help="a study's folder")


def _run_of_study(parser: Parser) -> None:
    _study(parser)
    parser.add_argument("run", metavar="RUN", help="run id, as the tables and the report name it")


def _out(parser: Parser, what: str, required: bool = False) -> None:
    parser.add_argument("--out", type=Path, metavar="DIR", required=required, help=what)


def _metric(parser: Parser) -> None:
    parser.add_argument("--metric", metavar="NAME", help=(
        f"eval_NAME of: {', '.join(METRICS)}, or of a study's own; by default its primary_metric, else "
        "the first of accuracy, ROUGE-L and score that all runs have, else the first that all have"))


def _host(parser: Parser) -> None:
    parser.add_argument("--host", type=Path, metavar="FOLDER",
                        help="the run's host, where it is no embedded one and no hub id")


# ---- one function for each command


def _init(parser: Parser) -> None:
    add = parser.add_argument
    add("file", nargs="?", type=Path, default=Path("study.yaml"), metavar="STUDY.yaml",
        help="a new file (study.yaml)")
    for name, (asked, default) in QUESTIONS.items():
        add(f"--{name}", metavar="WORDS", nargs="+" if name == "receiving" else None,
            help=f"{asked} [{default or 'nothing'}]")
    add("--text-column", metavar="NAME", help="column of the texts, where it has no usual name")
    add("--label-column", metavar="NAME", help="column of the labels, where it has no usual name")
    add("-y", "--yes", action="store_true", help="ask nothing: defaults for what is not given")


def _run(parser: Parser) -> None:
    parser.usage = "%(prog)s [STUDY.yaml] [+sweep=NAME] [key=value ...] [options]"
    add = parser.add_argument
    add("words", nargs="*", metavar="key=value", help="a study's file, as portability init writes it; "
        "settings: key=value, 'key=[a,b]', '~key' to take an entry out; see --cfg job")
    add("--version", action="version", version=f"portability {__version__}", help="show the version")
    _config_dir(parser)
    add("--limit", type=_count, metavar="N", help="for trying out: at most N examples of each set to train "
        "on, and N to evaluate (of a fixed shuffle); results lie apart, in a study called NAME-limit-N")
    add("-c", "--cfg", choices=["job"], help="show the configuration, and do nothing")
    add("-p", "--package", metavar="KEY", help="with --cfg: this part of it")
    add("--resolve", action="store_true", help="with --cfg: with all references filled in")


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"must be a whole number of examples from 1 on, got {text!r}")
    return int(text)


def _analyze(parser: Parser) -> None:
    _results(parser)
    _metric(parser)
    parser.add_argument("--quiet", action="store_true", help="write the files and print only where they are")


def _compare(parser: Parser) -> None:
    add = parser.add_argument
    add("studies", nargs="*", default=["results"], metavar="RESULTS",
        help="studies' folders, or results folders with several (results)")
    add("--by", choices=BY, default="strategy",
        help="a row for each method and strategy, or for each pair of hosts too (strategy)")
    add("--against", default=AGAINST, metavar="START",
        help=f"the start that gains are held against ({AGAINST})")
    _metric(parser)
    add("--published", action="store_true", help="leave out all but published copies")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--csv", action="store_true", help="print all rows as CSV")
    shape.add_argument("--json", action="store_true", help="print studies and all rows as JSON")
    add("--page", type=Path, metavar="FILE", help="write one HTML page with filters and charts")
    add("--readme", type=Path, metavar="FILE", help="write a Markdown page")


def _port(parser: Parser) -> None:
    add = parser.add_argument
    add("adapter", metavar="ADAPTER", help="a folder of peft or of adapters, or a hub id")
    add("--to", required=True, metavar="HOST", help="the receiving base model: a folder, or a hub "
        "id[@revision]")
    add("--from", dest="origin", metavar="HOST", help="the base that the adapter was trained on, where its "
        "configuration does not name it, or names what is not there")
    _out(parser, "new folder (ADAPTER-on-HOST unless it is given)")
    add("--strategy", default="auto", help="how the module is fitted (auto: as the hosts ask for)")
    add("--calibrate", type=Path, metavar="FILE", help="texts without labels, on which both hosts are "
        "compared: JSONL, CSV or Parquet with text (and text_pair), or a text a line")
    add("--calibrate-tokens", type=int, default=4096, metavar="N", help="so many tokens of them (4096)")
    add("--option", action="append", default=[], metavar="NAME=VALUE", help="of the strategy, VALUE as JSON "
        "or a word; may be given several times")
    add("--labels", type=Path, metavar="FILE", help="examples with text and label, as of --verify, for "
        "strategies that learn from some")
    add("--layer-map", default="stretch", metavar="MAP", help="which layers feed which: "
        f"{', '.join(LAYER_MAPS)}, or the origin layers behind each receiving one, as 0,2,4+5 (stretch)")
    add("--partial", action="store_true", help="let what has no counterpart stay fresh, or be dropped")
    add("--seed", type=int, default=0, help="of what stays fresh (0)")
    add("--via", choices=["lora"], help="turn the module into a LoRA on its own base first (peft's "
        "conversion)")
    add("--rank", type=float, default=0.99, help="of --via lora: a rank, or the share of the squared "
        "singular values to keep (0.99)")
    add("--format", choices=["same", "peft", "adapters"], default="same", help="library of the folder that "
        "is written; a LoRA alone can change it (same)")
    add("--merge", action="store_true", help="write the whole host with the module in its weights instead")
    add("--dry-run", action="store_true", help="write nothing")
    add("--verify", type=Path, metavar="FILE", help="examples (JSONL, CSV, Parquet) with text (and "
        "text_pair) and label (0, 1, ..., or its label word) to score bare and ported host on")
    add("--native", metavar="ADAPTER", help="an adapter trained on the receiving host, scored beside them")
    add("--template", default="{text}", help="of --verify and --labels: the question, with {text}, of pairs "
        "with {text_pair} too ({text})")
    add("--label-words", nargs="+", default=["negative", "positive"], metavar="WORD",
        help="of --verify and --labels: words that the host answers with, of label 0, 1, ... (negative "
        "positive)")
    add("--max-length", type=int, default=256, help="of --verify and --labels: most tokens of a "
        "question (256)")
    add("--json", action="store_true", help="print one JSON object instead of lines")


def _derive(parser: Parser) -> None:
    parser.add_argument("words", nargs="+", metavar="HOST", help="hosts of conf/host with a key derive; and "
                        "settings as of portability run, such as data_root=FOLDER, or a study's file")
    _config_dir(parser)


def _export(parser: Parser) -> None:
    _run_of_study(parser)
    _out(parser, "a new folder for the module")
    _host(parser)
    add = parser.add_argument
    add("--answers", type=Path, metavar="FILE.jsonl", help="a new file: a line for each test example, with "
        "the prompt, its right answer, and the run's margins or scores at each mark")
    add("--arms", action="store_true", help="of --answers: beside them those of the runs with other starts "
        "and of the bare host")
    add("--data", type=Path, metavar="FOLDER", help="of --answers: the data set, where it is no embedded "
        "one, no hub id, and not where conf/data says")


def _merge(parser: Parser) -> None:
    _run_of_study(parser)
    _out(parser, "a new folder for the host", required=True)
    _host(parser)


def _list(parser: Parser) -> None:
    parser.add_argument("group", metavar="GROUP", choices=sorted(GROUPS), help=", ".join(sorted(GROUPS)))
    _config_dir(parser)


def _publish(parser: Parser) -> None:
    _results(parser)
    add = parser.add_argument
    add("--to", required=True, choices=("wandb",), help="where to")
    add("--mode", default="auto", choices=("auto", "offline", "online"),
        help="auto: $WANDB_MODE, else online if a key is found, else offline")
    add("--project", default="portability", help="W&B project (portability, as while a study runs)")
    add("--only-study", action="store_true",
        help="send the study's own run alone: verdict, gains and charts")
    add("--dashboard", action="store_true", help="save a workspace with the comparisons too (needs a key)")


def _store(parser: Parser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="what")

    def one(name: str, does: str) -> Parser:
        examples = [line for line in COMMANDS["store"].examples if line.split()[2] == name]
        made = commands.add_parser(name, help=does, command=Command(does, examples))
        made.set_defaults(parser=made)
        return made

    verify = one("verify", "check every file of a study, or of all studies of a results folder")
    _results(verify)
    either = verify.add_mutually_exclusive_group()
    either.add_argument("--discard", action="store_true", help="move unsound run folders to STUDY/discarded/")
    either.add_argument("--submission", action="store_true",
                        help="whether a packed study can be sent to others (docs/submitting.md)")
    merge = one("merge", "copy the runs of other studies into one; all are checked first")
    merge.add_argument("target", type=Path, metavar="STUDY",
                       help="the study's folder; made where it is not there")
    merge.add_argument("shards", type=Path, nargs="+", metavar="OTHER",
                       help="folders of the studies to copy from")
    pack = one("pack", "write a study's records and predictions, without modules, for publication")
    _study(pack)
    _out(pack, "a new folder", required=True)
    _study(one("compact", "bring a study's index up to date"))
    _study(one("tidy", "remove what processes killed more than a day ago left behind"))


def _bench(parser: Parser) -> None:
    add = parser.add_argument
    add("--shape", choices=SHAPES, default="t5-128x4", metavar="SHAPE",
        help=f"host with random weights: {', '.join(SHAPES)} (t5-128x4)")
    add("--host", help="takes its place: a folder, or a name of conf/host")
    add("--method", default="lora", help="a file in conf/method (lora)")
    add("--members", type=_sizes, default="1,4,16,32", help="sizes of our stacks (1,4,16,32)")
    add("--batch-size", type=int, default=16, help="examples of one module's update (16)")
    add("--rounds", type=int, default=5, help="measured rounds, in which all take turns (5)")
    add("--precision", choices=("fp32", "bf16"), default="fp32",
        help="bf16: all but the Trainer as it comes (fp32)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda where there is one")
    add("--grid", nargs="+", default=("+sweep=demo", "method=[adapter,lora]",
                                      "grid.pairs=[[nano-raw-base,nano-tuned-base]]"),
        metavar="WORD", help="the grid, in words of portability run")
    add("--workers", type=int, help="processes of ours and of the loop; by default a core each, or one a GPU")
    add("--only", choices=PARTS + FURTHER, action="append", metavar="PART",
        help="one part (may be repeated): equality of losses; rivals (Trainer); loop (a plain one around the "
        "library's module, fp32 and bf16 in one run); graphs (CUDA); study (hours of the study's 1,440 "
        f"cells, from rivals); floor; grid; without it {', '.join(PARTS)}")


def _sizes(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


_sizes.__name__ = "sizes"
COMMANDS = {
    "init": Command(
        "Write a study of your own in one file with comments, which runs as it is: five questions ask for "
        "method, hosts and data.",
        ("portability init", "portability init --yes",
         "portability init mine.yaml --origin ../small --receiving ../large --train reviews.csv --yes",
         "portability init mine.yaml --method my-lora --receiving ../large --train reviews.csv --yes"),
        "write a study of your own in one file, by five questions", _init),
    "run": Command(
        "Carry out a study: what its results folder lacks is trained and evaluated. mode=plan only says what "
        "that would be, mode=status how far it is; portability list GROUP has the names that settings "
        "take.",
        ("portability run +sweep=demo", "portability run +sweep=full mode=plan",
         "portability run mine.yaml --limit 20",
         "portability run method=lora origin=raw_base receiving=raw_large 'grid.seeds=[0,1]'"),
        "carry out a study, or plan it: +sweep=NAME key=value ...", _run, logging.INFO,
        "finished runs and checkpoints are kept", SETTINGS),
    "analyze": Command(
        "Write tables, charts and a report for every study below a folder, and print the verdict.",
        ("portability analyze results/", "portability analyze results/demo --metric eval_f1",
         "portability analyze results/demo --quiet"),
        "tables, charts and the report of a study's results", _analyze, kept="the records are as they were"),
    "compare": Command(
        "Say what several studies found, side by side, by method, strategy and pair of hosts.",
        ("portability compare results/", "portability compare results/a results/b --by pair",
         "portability compare results/ --page results/index.html"),
        "what several studies say, side by side", _compare),
    "port": Command(
        "Fit somebody's adapter to another base model, and write a folder that its library loads. No weights "
        "are read, beside the embeddings, unless something that was asked for needs them.",
        ("portability port my-lora --to ../llama-64 --out my-lora-on-64",
         "portability port owner/adapter --to owner/larger-model --dry-run",
         "portability port my-lora --to ../tuned --verify test.jsonl --label-words ' bad' ' good' --json"),
        "fit somebody's adapter to another base model", _port),
    "derive": Command(
        "Make hosts of conf/host that are made of other hosts by a recipe, once, into the cache: trained "
        "further, thinned, narrowed, noised, quantised, or in a hidden basis.",
        ("portability derive smollm2-20-layers", "portability derive smollm2-books-60 data_root=~/data",
         "portability derive --config-dir mine my-thinner-host"),
        "make a host out of another: trained further, thinned, narrowed, noised, ...", _derive,
        kept="hosts that were made are kept"),
    "export": Command(
        "Write a module of a study as a folder that its library loads (--out DIR), or what the run answered "
        "to each test example (--answers FILE).",
        ("portability export results/demo 3f2a9c0d1e4b5a67 --out my-lora",
         "portability export results/mine 3f2a9c0d1e4b5a67 --out my-lora --host ../my-host",
         "portability export results/demo 3f2a9c0d1e4b5a67 --answers answers.jsonl --arms"),
        "a module of a study as a folder that its library loads", _export),
    "merge": Command(
        "Write a host with a run's LoRA in its weights, as a plain host folder, which transformers loads, or "
        "a file of conf/host names; a classification head is no part of it.",
        ("portability merge results/extract_tasks 3f2a9c0d1e4b5a67 --out merged",
         "portability merge results/mine 3f2a9c0d1e4b5a67 --out merged --host ../my-host",
         "portability run +host.merged.path=merged receiving=merged method=lora"),
        "a host with a run's LoRA in its weights", _merge),
    "list": Command(
        "List the hosts, data sets, methods, sweeps, ... that there are, by the names that other commands "
        "take.",
        ("portability list hosts", "portability list methods", "portability list sweeps --config-dir mine"),
        "hosts, data, methods, strategies, sweeps, ... that there are", _list),
    "publish": Command(
        "File every study's runs in Weights & Biases, each once: a repeated call sends only what is new.",
        ("portability publish results/ --to wandb",
         "portability publish results/demo --to wandb --mode offline",
         "portability publish results/demo --to wandb --project mine --dashboard"),
        "send a study's records to W&B", _publish, kept="what was sent is kept"),
    "store": Command(
        "Look after studies' folders. verify exits with 1 when it found something.",
        ("portability store verify results/ --discard",
         "portability store verify results/mine --submission",
         "portability store merge results/full_nano ../other/results/full_nano",
         "portability store pack results/full_nano --out results/mine",
         "portability store compact results/full_nano", "portability store tidy results/full_nano"),
        "look after a study's folder: verify, merge, pack, compact, tidy", _store,
        kept="the records are kept"),
    "bench": Command(
        "Time our engine against what a user would do instead, on random weights, as ratios of times taken "
        "in turn.",
        ("portability bench", "portability bench --shape t5-base --batch-size 32 --precision bf16",
         "portability bench --only loop --host smollm2-135m-instruct --method lora_peft --members 1,2,4"),
        "how fast modules train here, against other ways", _bench),
}
