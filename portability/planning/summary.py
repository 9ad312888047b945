"""What a command says of a plan before it is carried out."""

from portability.core.measures import MEASURES, name_of
from portability.core.specs import METRICS
from portability.core.wording import counted
from portability.planning.cost import updates_of
from portability.planning.plan import Plan
from portability.planning.study import Study
from portability.store import Store

SHOWN = ("train", "validation", "test", "dropped")  # of a data set's counts


def plan_lines(study: Study, planned: Plan, store: Store) -> list[str]:
    """What would be done: cells, the distinct runs behind them, what sharing saves, and what is done."""
    cells = [cell for cell in planned.cells if cell.budget > 0]
    behind: dict[str, list[str]] = {}
    for cell in cells:
        behind.setdefault(cell.init, []).append(cell.run_id)
    marks = store.marks()
    done = sum(planned.marks[run_id] <= marks.get(run_id, frozenset()) for run_id in planned.runs)
    updates, alone = updates_of(planned)
    return [
        f"study {study.name}: {counted(len(cells), 'cell')} "
        f"(zero-shot and bare hosts: {len(planned.cells) - len(cells)} more)",
        *(f"  {init}: {counted(len(ids), 'cell')} of {counted(len(set(ids)), 'run')}"
          for init, ids in behind.items()),
        f"runs: {len(planned.runs)} distinct, {done} done, {len(planned.runs) - done} to do",
        f"updates: {updates} planned, {alone} if every cell and its origin were trained for themselves"
        + (f" (saving {1 - updates / alone:.0%})" if alone > updates else ""),
        *(f"data {name}: " + ", ".join(f"{counts[key]} {key}" for key in SHOWN)
          for name, counts in study.data.counts.items()),
        *lacking(study, planned, store),
        *study.warnings,
    ]


def lacking(study: Study, planned: Plan, store: Store) -> list[str]:
    """Which of the metrics that are asked for done runs were stored without: what is done is not done again
    for them.
    """
    asked = study.grid.eval.metrics
    if asked == METRICS:
        return []
    infos = [record["train_info"] for record in store.records() if record["run_id"] in planned.runs]
    done = [{hole["metric"] for hole in info.get("unmeasured", [])}.union(*info["metrics"]) for info in infos]
    found = []
    for metric in asked:
        name, shipped = f"eval_{name_of(metric)}", metric in MEASURES
        beginnings = () if shipped else (f"{name}_",)  # one of the user's own may give several numbers
        hint = "it is computed for new runs only; a new study (study=NAME) has it for all"
        if shipped:
            hint = f"`portability analyze --metric {name}` computes it from their predictions"
        without = sum(not any(key == name or key.startswith(beginnings) for key in held)
                      for held in done if "eval_accuracy_calibrated" in held)  # of texts with labels
        if without:
            runs = counted(without, "done run")
            found.append(f"metric {name_of(metric)}: {runs} stored without it; {hint}")
    return found
