"""What an engine is: it takes jobs, has workers carry them out, and tells what happens to them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from portability.core.errors import UserError
from portability.core.stages import Stage
from portability.execution.worker import Job, Setup
from portability.hosts.devices import Place
from portability.planning.study import EngineConf


@dataclass(frozen=True)
class Ended:
    """The end of a job, or of a part of one; `death` says how its worker ended where it did not carry it out."""

    job: Job
    death: str | None = None


class Engine(ABC):
    """Carries jobs out; results are in the store. Added by a file here, a line in ENGINES and conf/engine/NAME.yaml.

    `keeps_order`: it takes jobs before what they start from is done, and keeps them until then.

    Raises:
        UserError: it cannot begin.
    """

    keeps_order = False

    def __init__(self, conf: EngineConf, setup: Setup):
        self.conf, self.setup = conf, setup

    @staticmethod
    @abstractmethod
    def check(conf: EngineConf) -> None:
        """See that this engine can work here.

        Raises:
            UserError: something is missing, or an option is wrong.
        """

    @staticmethod
    def places(conf: EngineConf) -> list[Place]:
        """Where on this machine its workers compute; empty where that is elsewhere."""
        return []

    @abstractmethod
    def submit(self, jobs: Sequence[Job]) -> None:
        """Take jobs over."""

    @abstractmethod
    def events(self) -> Iterator[Stage | Ended]:
        """What happens, until all jobs have ended, those submitted meanwhile among them.

        Raises:
            UserError: no job can be carried out, say for a full disk; finished runs are in the store.
        """

    @property
    def idle(self) -> bool:
        """Whether a worker has nothing to do, and no job is left for it."""
        return False

    @abstractmethod
    def drain(self) -> None:
        """End the workers; those at work keep checkpoints. Called in any case, once."""


def cannot_go_on(error: object) -> UserError:
    """What to raise where a worker could not read or write a file, so that no run can be carried out."""
    return UserError(f"cannot go on: {error}; finished runs are kept, repeat the command once it is put right")
