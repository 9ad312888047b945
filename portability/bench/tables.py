"""What the benchmark found, as text."""

from collections.abc import Mapping, Sequence
from typing import Any


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first one to the left, the others to the right.

    Example:
        >>> print(grid(["who", "ms"], [["a", "1.0"], ["long", "10.0"]]))
        who     ms
        a      1.0
        long  10.0
    """
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = []
    for row in [head, *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _range(found: Mapping[str, float] | None, digits: int) -> str:
    if found is None:
        return "-"
    return f"{found['median']:.{digits}f} [{found['min']:.{digits}f}-{found['max']:.{digits}f}]"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def rivals(found: Mapping[str, Any]) -> str:
    """The race: one line a contender."""
    rows = found["rows"]
    beside = rows[2]["name"]
    head = ["contender", "procs x modules", "ms/module-update", "pooled", "trainer / this", "tuned / this", f"{beside} / this",
            "padding", "cpu ms", "eval ms/1000", "start s"]
    lines = [[
        row["name"], f"{row['processes']} x {row['modules']}", _range(row["ms"], 2), _number(row["ms_pooled"], 2),
        *(_range(row[f"{other}_over_this"], 2) for other in ("trainer", "tuned", "beside")), _number(row["padding"], 2),
        _number(row["cpu_ms"], 1), _number((row["eval_ms_per_1000"] or {}).get("median"), 0), _number(row["start_s"], 1),
    ] for row in rows]
    faults = [f"{row['name']}: {row['failed']}" for row in rows if row["failed"]]
    if len({row["precision"] for row in rows} - {None}) > 1:
        faults += [f"{row['name']}: in {row['precision']}, as it comes" for row in rows if row["precision"] == "fp32"]
    return "\n".join([grid(head, lines), *faults, _counts(rows), *_hours(found["full_grid"]), _noise(found["foreign_cores"])])


def _hours(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return []
    return [f"full sweep of 1,440 cells at 100, 500 and 2,000 updates, training alone, if all hosts had this shape: "
            f"{found['naive_hours']:.1f} h with trainer ({found['updates_alone']:,} updates), {found['our_hours']:.1f} h with "
            f"{found['best']} ({found['updates_shared']:,} updates)"]


def _counts(rows: Sequence[Mapping[str, Any]]) -> str:
    sizes = {row["trainable"] for row in rows if row["trainable"] is not None}
    if len(sizes) == 1:
        return f"trainable numbers per module: {sizes.pop():,} in every contender (equal)"
    return "trainable numbers per module DIFFER: " + ", ".join(f"{row['name']} {row['trainable']}" for row in rows)


def _noise(foreign: float | None) -> str:
    if foreign is None:
        return "other processes: not known on this system"
    warning = ": DISTURBED, do not quote these times" if foreign > 0.1 else ""
    return f"other processes kept {foreign:.2f} cores busy meanwhile{warning}"


def equality(found: Mapping[str, Any]) -> str:
    """Differences of losses, and whether they keep their bounds."""
    head = ["same start, batches and optimiser", "first loss", "last loss", "max difference", "bound"]
    signed = [*(("<=", row) for row in found["rows"]), (">", found["control"])]
    lines = [[row["name"], f"{row['first_loss']:.4f}", f"{row['last_loss']:.4f}", f"{row['difference']:.1e}",
              f"{sign} {row['bound']:.0e}"] for sign, row in signed]
    word = "passed" if found["passed"] else "FAILED"
    return "\n".join([grid(head, lines), f"weights of a member after {found['updates']} updates, K=1 | K=4: "
                                         f"max difference {found['weights_k1_k4']:.1e}", f"equality: {word}"])


def floor(found: Mapping[str, Any]) -> str:
    """Time against the machine's own rate of matrix products."""
    lines = [[row["name"], f"{row['ms']:.2f}", f"{row['of_floor']:.0%}",
              "-" if row["products"] is None else f"{row['products']:.0%}"] for row in found["rows"]]
    return "\n".join([
        f"floor: {found['flops'] / 1e9:.3f} GFLOP per module-update ({found['tokens']} tokens) at "
        f"{found['gemm_flops_per_s'] / 1e9:.0f} GFLOP/s = {found['floor_ms']:.2f} ms",
        grid(["floor", "ms/module-update", "share of the rate", "time in products"], lines),
    ])


def memory(found: Mapping[str, Any]) -> str:
    """Peak above the loaded host."""
    lines = [[f"K={row['modules']}", f"{row['bytes'] / 2**20:.0f}", f"{row['bytes_per_member']:,.0f}"]
             for row in found["rows"]]
    return "\n".join([grid(["memory", "MiB above the host's process", "bytes per member"], lines),
                      f"host and libraries alone: {found['host_bytes'] / 2**20:.0f} MiB"])
