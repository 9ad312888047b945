"""The question of a study: a grid of axes, whose combinations are its cells. No torch here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from portability.core import specs
from portability.core.errors import UserError

SELF, NEXT = "self", "next"  # of a relation: the receiving set itself, and the one that follows in grid.data


@dataclass(frozen=True)
class Grid:
    """The question: every combination of these axes is a cell.

    `data` are the sets the receiving module is trained and evaluated on; `relations` maps a relation's name
    to the set the origin is trained on, by the name of the receiving set; `budgets` are optimiser updates on
    the receiving host (zero-shot comes on top); `head` is "shared" or "fresh" and concerns hosts with a
    classification head only; `task` is that of sets of texts with labels, `tasks` has those that a set says
    itself, `answers` those of sets of prompts, by the set's name. `rates` are factors on each method's
    learning rate on the receiving host, each a method of its own ("lora x3"); origins and natives keep the
    common rate. With `origin_seeds` "other" an origin has a seed of its own, so a receiving run does not see
    its origin's batches again. With `module` nothing is trained on the origin host: the module from elsewhere
    stands for what would be.
    """

    methods: Sequence[specs.MethodSpec]
    pairs: Sequence[tuple[specs.HostSpec, specs.HostSpec]]  # (origin, receiving), in that order
    relations: Mapping[str, Mapping[str, specs.DataSpec]]
    data: Sequence[specs.DataSpec]
    inits: Sequence[specs.InitSpec]
    ports: Sequence[specs.PortSpec]
    seeds: Sequence[int]
    budgets: Sequence[int]
    origin_updates: int
    task: specs.TaskSpec
    train: specs.TrainSpec
    eval: specs.EvalSpec
    precision: str
    head: str
    answers: Mapping[str, specs.AnswerSpec] = field(default_factory=dict)
    tasks: Mapping[str, specs.TaskSpec] = field(default_factory=dict)
    rates: Sequence[float] = (1.0,)
    origin_seeds: str = "same"
    module: specs.ExternalModule | None = None
    exclude: Sequence[Mapping[str, list[str]]] = ()  # places whose cells are not planned

    def task_of(self, data: specs.DataSpec) -> specs.TaskSpec | specs.AnswerSpec:
        """How a set's texts or prompts are asked and scored."""
        return self.answers.get(data.name) or self.tasks.get(data.name, self.task)

    @property
    def label_counts(self) -> set[int]:
        """How many labels its sets of texts with labels have."""
        used = [*self.data, *(one for named in self.relations.values() for one in named.values())]
        tasks = [self.task_of(data) for data in used]
        return {len(task.label_words) for task in tasks if isinstance(task, specs.TaskSpec)}


def origins(relation: str, value: str, received: Sequence[str]) -> dict[str, str]:
    """By receiving set, the set that its origin is trained on: the one named, or `self`, or the `next`
    receiving set.

    Raises:
        UserError: there is no next one.

    Example:
        >>> origins("different", "next", ["sums", "quiz"])
        {'sums': 'quiz', 'quiz': 'sums'}
    """
    if value == NEXT and len(received) < 2:
        raise UserError(f"grid.relations.{relation} is '{NEXT}', and grid.data names one set only; name "
                        f"another set there, or a set here, or leave it out: '~grid.relations.{relation}'")
    following = dict(zip(received, [*received[1:], received[0]], strict=True))
    return {name: {SELF: name, NEXT: following[name]}.get(value, value) for name in received}


def check_relations(relations: Mapping[str, Mapping[str, str]], received: Sequence[str]) -> None:
    """Refuse two relations that are one: seed examples would be compared with themselves.

    Args:
        relations: what `origins` gives, by relation.

    Raises:
        UserError: two of them name one set for a receiving set.
    """
    for own in received:
        sources = {name: given[own] for name, given in relations.items()}
        if len(set(sources.values())) < len(sources):
            raise UserError(f"grid.relations takes the seed examples of '{own}' twice from the same set "
                            f"({', '.join(map(': '.join, sources.items()))}); name different ones")


def rated(method: specs.MethodSpec, rate: float) -> specs.MethodSpec:
    """A method with its learning rate times `rate`, and a name that says so.

    Example:
        >>> rated(specs.MethodSpec("lora", "adapters", "LoRAConfig", {}, 3e-3), 3.0).name
        'lora x3'
    """
    if rate == 1:
        return method
    return replace(method, name=f"{method.name} x{rate:g}", learning_rate=method.learning_rate * rate)
