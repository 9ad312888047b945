"""The command `portability port ADAPTER --to HOST`: somebody's adapter fitted to another base model.

ADAPTER is a folder of peft or of adapters, or a hub id, HOST a folder or a hub id. No weights are read,
beside the embeddings, unless something that was asked for needs them. What is written is a folder that the
library loads.
"""

import json
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from portability.core.command_line import carry_out
from portability.core.errors import UserError
from portability.core.specs import HostSpec, PortSpec
from portability.hosts.devices import without_gaps
from portability.hosts.resolve import public_name, with_weights
from portability.methods.folder import AdapterFolder
from portability.options import parser
from portability.porting.adapter import (
    PortedAdapter,
    caching,
    find_hosts,
    load_adapter,
    module_in,
    port_adapter,
)
from portability.porting.calibration import Calibration, calibration, read_texts
from portability.porting.formats import in_library
from portability.porting.layer_maps import MEASURED, check_layer_map
from portability.porting.port import needs_of, strategies_of
from portability.porting.size import size_of
from portability.porting.verdict import layers_line, left_behind, outlook, size_lines, verdict

MEANING = {  # of the report's words for a tensor
    "carried": "as it was", "transported": "in the receiving host's coordinates",
    "mapped": "as it was, from another layer", "cut": "the entries that fit",
    "padded": "zeros where the origin has nothing", "repeated": "repeated where the origin has nothing",
    "averaged": "several layers as one", "fresh": "the library's own start", "dropped": "left behind",
    "drawn": "noise of the norm of the origin's tensor",
}
OF = {"verify": ("native",), "via": ("rank",), "calibrate": ("calibrate_tokens",)}  # option -> its own
ASKED = ("template", "label_words", "max_length")  # of --verify, --labels, and strategies that learn


def main(arguments: Sequence[str] | None = None) -> int:
    """Port one adapter; gives back the exit code."""
    return carry_out(parser("port"), work, arguments)


def work(options: Namespace) -> None:
    """Port one adapter, and print what was done.

    Raises:
        UserError: what the user must change.
    """
    found = run(options)
    if options.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")


def run(options: Namespace) -> dict[str, Any]:
    """Carry the command out, and give back what it prints as JSON.

    Raises:
        UserError: what the user must change.
    """
    def say(line: str) -> None:
        if not options.json:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

    _check_together(options)
    check_layer_map(options.layer_map)
    texts = options.calibrate and calibration(options.calibrate.name, read_texts(options.calibrate),
                                              options.calibrate_tokens, options.seed)
    task, labelled = None, None
    if _learns(options):
        from portability.porting.verify import asked, read_rows

        task = asked(options)
        labelled = options.labels and read_rows(options.labels, "--labels", task)
    adapter = load_adapter(options.adapter)
    origin, receiving = find_hosts(adapter, options.to, options.origin)
    out = options.out or Path(f"{adapter.called}-on-{receiving.name}")
    if not options.dry_run and out.exists():
        raise UserError(f"{out} is there already; name a new folder (--out)")
    for line in verdict(adapter, origin, receiving, options.origin):
        say(line)
    strategy = outlook(origin, receiving, options.strategy, texts is not None, say,
                       None if options.via else lambda: module_in(adapter, origin.shape)[1])
    for line in left_behind(adapter):
        say(line)
    load = caching()
    if options.via:
        from portability.porting.convert import to_lora

        adapter, errors = to_lora(adapter, with_weights(origin), options.rank)
        say(f"turned into a LoRA of rank {adapter.config['r']} on its own base; relative error of its "
            f"matrices: median {errors['median']:.3g}, largest {errors['largest']:.3g}")
    if options.format != "same":
        adapter = in_library(adapter, origin.shape, options.format)
    if texts and not options.json:
        for line in _size(adapter, (origin, receiving), strategy, options, texts):
            say(line)
        say(layers_line(origin, receiving, load, texts))
    done = port_adapter(adapter, receiving, origin, options.strategy, options.layer_map, options.partial,
                        options.seed, _options(options.option), texts, task, labelled, load)
    for line in report_lines(done):
        say(line)
    found: dict[str, Any] = {"adapter": adapter.called, "origin": origin.name,
                             "receiving": receiving.name, "report": done.report.summary()}
    if options.verify:
        from portability.porting.verify import verify

        native = load_adapter(options.native) if options.native else None
        found["scores"] = verify(done, with_weights(receiving), options, native, say)
    if not options.dry_run:
        done.save(out, options.merge, found.get("scores"), made_by(options))
        found["out"] = str(out)
        say(f"written: {out}")
    return found


def _size(adapter: AdapterFolder, hosts: tuple[HostSpec, HostSpec], strategy: str,
          options: Namespace, texts: Calibration) -> list[str]:
    """What is said of a port that takes much; this process then gives back what it frees."""
    spec = PortSpec(strategy, strategy, options.layer_map, options.partial, _options(options.option))
    size = size_of(adapter, *hosts, spec, texts)
    lines = size_lines(size) if size else []
    if lines:
        without_gaps()
    return lines


def _check_together(options: Namespace) -> None:
    """Refuse an option without the one that it belongs to."""
    default = parser("port").get_default
    for main_one, others in OF.items():
        for name in others if not getattr(options, main_one) else ():
            if getattr(options, name) != default(name):
                raise UserError(f"--{name.replace('_', '-')} is an option of --{main_one}, which is not "
                                "given; add that, or leave it out")
    if options.labels and "labels" not in _needs(options):
        raise UserError(f"--labels: strategy '{options.strategy}' learns from no labels")
    if options.calibrate and "text" not in _needs(options) and options.layer_map != MEASURED:
        raise UserError(f"--calibrate: strategy '{options.strategy}' with layer map '{options.layer_map}' "
                        "reads no texts")
    for name in ASKED if not options.verify and not _learns(options) else ():
        if getattr(options, name) != default(name):
            raise UserError(f"--{name.replace('_', '-')} is an option of --verify and --labels, and neither "
                            "is given")


def _options(words: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE as options of a strategy."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise UserError(f"--option must be NAME=VALUE, got {word!r}")
        try:
            found[name] = json.loads(value)
        except ValueError:  # a word
            found[name] = value
    return found


def _needs(options: Namespace) -> frozenset[str]:
    """What a port uses, and where its strategy goes on from another one what that uses."""
    return frozenset[str]().union(*(needs_of(one, options.layer_map) for one in strategies_of(
        options.strategy, _options(options.option))))


def _learns(options: Namespace) -> bool:
    """Whether the strategy asks hosts about a task."""
    return bool({"labels", "training"} & _needs(options))


def made_by(options: Namespace) -> str:
    """The command that makes the port again, with names in place of folders' paths."""
    words = ["portability", "port", public_name(options.adapter), "--to", public_name(options.to)]
    if options.origin:
        words += ["--from", public_name(options.origin)]
    words += ["--strategy", options.strategy, "--layer-map", options.layer_map]
    if options.calibrate:
        words += ["--calibrate", options.calibrate.name, "--calibrate-tokens", str(options.calibrate_tokens)]
    words += [word for option in options.option for word in ("--option", option)]
    words += ["--labels", options.labels.name] if options.labels else []
    if _learns(options):
        words += ["--template", options.template, "--label-words", *options.label_words, "--max-length",
                  str(options.max_length)]
    words += ["--via", options.via, "--rank", f"{options.rank:g}"] if options.via else []
    words += ["--format", options.format] if options.format != "same" else []
    words += ["--partial"] if options.partial else []
    words += ["--seed", str(options.seed)] if options.seed or options.partial else []
    return shlex.join([*words, *(["--merge"] if options.merge else [])])


def report_lines(done: PortedAdapter) -> list[str]:
    """What the port did, in words."""
    report = done.report
    lines = []
    for stack, layers in report.layer_map.items():
        if stack == "shared":
            continue
        if layers == [[layer] for layer in range(len(layers))]:
            lines.append(f"{stack} layers: {len(layers)}, each from its own")
        else:
            pairs = ", ".join(f"{layer} from {'+'.join(map(str, origins))}"
                              for layer, origins in enumerate(layers))
            lines.append(f"{stack} layers: {pairs}")
    left = report.left()
    for action, count in report.summary()["actions"].items():
        places = f" ({'; '.join(left[action])})" if action in left else ""
        lines.append(f"{count} tensors {action}: {MEANING.get(action, '')}{places}")
    lines.append(f"carried of the origin's module: {report.carried_fraction:.1%} of its tensors, "
                 f"{report.carried_entries_fraction:.1%} of its numbers, {report.carried_norm_fraction:.1%} "
                 "of its squared norm")
    lines.append(f"filled of the receiving module: {report.filled_fraction:.1%} of its numbers")
    return lines + report.notes


if __name__ == "__main__":
    sys.exit(main())
