"""What follows from a study's hosts and data where its configuration does not say: how texts are asked about,
which learning rates and budgets nobody has tried, and which budgets are not the epochs they stand for."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from portability.config.schema import Config, TaskConf
from portability.core.architectures import FAMILIES
from portability.core.specs import HostSpec, TaskSpec
from portability.data.splits import StudyData
from portability.planning.grid import Grid

WORDS = ("negative", "positive")  # of labels 0 and 1 that have no names
KINDS = ("encoder", "seq2seq", "decoder")  # hosts of several kinds are asked as the last of theirs


def question(conf: TaskConf, hosts: Sequence[HostSpec], pairs: bool) -> TaskSpec:
    """The study's question about a text or, for `pairs`, about two; {labels} of its template is left open
    (`sources.task_spec` fills it).

    Args:
        hosts: of the study, at least one.
    """
    kind = max((FAMILIES[host.shape.family].kind for host in hosts), key=KINDS.index)
    template = conf.template or conf.by_family[kind][pairs]  # type: ignore[index]  # pydantic saw the keys
    return TaskSpec(template, conf.label_words or WORDS, conf.max_length)


def untried(conf: Config, grid: Grid, derived: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence where the learning rates of the study's methods, or its budgets, were not chosen on its
    hosts; nothing where they were.

    Args:
        derived: of every host that is made of another, what it stems from ("from").
    """
    tried = conf.host_set.tried
    names = dict.fromkeys(host.name for pair in grid.pairs for host in pair)
    hosts = [name for name in names if {name, derived.get(name, {}).get("from")}.isdisjoint(tried.hosts)]
    rates = ", ".join(f"{method.name} {method.learning_rate:g}" for method in grid.methods
                      if hosts or method.name not in tried.methods)
    if not rates:
        return []
    budgets = f" and budgets ({', '.join(map(str, grid.budgets))} updates)" if hosts else ""
    return [f"not tried on {', '.join(hosts or names)}: learning rates ({rates}){budgets}; choose them on "
            "validation data before you compare: grid.inits=[scratch] grid.rates=[0.333,1,3] "
            "grid.seeds=[900] eval.split=validation study=rates (then say so in host_set.tried)"]


def other_epochs(grid: Grid, data: StudyData, names: Iterable[str]) -> list[str]:
    """A sentence for each training set with so many fewer examples than `train_examples` that the budget of a
    linear schedule, whole epochs of these, is no longer that.

    Args:
        names: of the sets that are trained on.
    """
    found, budget, size = [], max(grid.budgets), grid.train.batch_size
    for name in names if grid.train.schedule == "linear" else ():
        drawn, left = data.sources[name].train_examples or 0, data.counts[name]["train"]
        planned, batches = drawn // size, left // size
        if not planned or budget % planned or batches in (0, planned):
            continue
        dropped = data.counts[name]["dropped"]
        why = f" ({dropped} that stand elsewhere in the study were dropped)" if dropped else ""
        found.append(
            f"data set '{name}' has {left:,} training examples and not {drawn:,}{why}, {batches} whole "
            f"batches of {size} an epoch and not {planned}: {budget} updates are {budget / batches:.2g} "
            f"epochs; {budget // planned} are grid.budgets=[{budget // planned * batches}]")
    return found
