"""The extraction behind a run: seed examples of the run's data in the teacher's tokens, and what is cut out by them."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from portability.core.architectures import FAMILIES
from portability.core.errors import UserError, choose
from portability.core.seeds import stream_seed
from portability.core.specs import PISSA, AnswerSpec, HostSpec, InitSpec, MethodSpec, RunSpec
from portability.data.answer_tokens import encode_answers
from portability.data.examples import Example
from portability.data.splits import StudyData, encode, examples, rows
from portability.hosts.host import label_ids, load_tokenizer
from portability.hosts.sources import check_unchanged
from portability.inits.extraction import ExtractionOptions, ExtractReport, Seed, extract
from portability.methods.module import ModuleState
from portability.methods.subtractive_lora import lora_settings
from portability.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPTIONS = ("seeds", "layers", "structure", "split", "scores")  # of an init that starts from an extraction
BLOCKLESS = ("extracted_noise", PISSA)  # kinds of init that know pairs alone
SEEDS = 32  # examples, as in the reference (Zhong et al. 2024, n_sample of its sampling script)


def extraction_options(method: MethodSpec, init: InitSpec) -> ExtractionOptions:
    """The options of an init for a method: rank and sites are the method's, so that the pairs fit it.

    Raises:
        UserError: an unknown option or value, or a method that cannot take a start off the host.
    """
    if method.library != "portability":
        raise UserError(f"init '{init.name}' starts from pairs that are taken off the host, which method '{method.name}' of "
                        f"library {method.library} cannot do; use one of library portability (method=lora_all)")
    for name in init.options:
        choose(str(name), OPTIONS, f"option of init '{init.name}'")
    settings = lora_settings(method.settings, method.name)
    blocks = settings.subtract == "block"
    if blocks and init.kind in BLOCKLESS:
        raise UserError(f"init '{init.name}' has no block to take off the host, only pairs; leave it out (grid.inits), or set "
                        f"method.{method.name}.settings.subtract=product")
    values = {name: str(value) for name, value in init.options.items() if name != "seeds"}
    return ExtractionOptions(rank=settings.r, sites=settings.sites, blocks=blocks, **values)


def seed_count(init: InitSpec) -> int:
    """How many seed examples an init asks for.

    Raises:
        UserError: not a whole number from 1 on.
    """
    count = init.options.get("seeds", SEEDS)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise UserError(f"init '{init.name}': seeds must be a whole number from 1 on, got {count!r}")
    return count


def extraction(
    run: RunSpec, data: StudyData, store: Store, device: str = "cpu", free: Callable[[], int] = lambda: 1
) -> tuple[ModuleState, ExtractReport]:
    """The module of a run of kind `extraction`.

    Args:
        device: where it is computed.
        free: gives the threads that it may use now.

    Raises:
        UserError: what `extract` raises.
    """
    assert run.teacher is not None and run.method is not None
    for host in (run.teacher, run.host):
        check_unchanged(host)
    options = extraction_options(run.method, run.init)
    seeds = [] if options.scores == "ones" else seed_examples(run, run.teacher, data)
    head = store.tensors(run.origin, "head")[0] if run.origin else None
    return extract(run.teacher, run.host, seeds, options, int(run.seed or 0), head, device, free)


def seed_examples(run: RunSpec, teacher: HostSpec, data: StudyData) -> list[Seed]:
    """Examples of the run's training data with their gold answers, drawn by the run's seed without replacement, asked and
    answered as in training: the answer is the first token of the label word.

    Raises:
        UserError: the training data has fewer examples.
    """
    count, family = seed_count(run.init), teacher.shape.family
    answers, tokenizer = isinstance(run.task, AnswerSpec), load_tokenizer(teacher)
    dataset = examples(data, run.data.name, "train", 0) if answers else rows(data, run.data.name, "train", 0)
    if isinstance(run.task, AnswerSpec) and run.task.too_long == "drop":
        dataset = [dataset[i] for i in encode_answers(dataset, tokenizer, family, run.task.max_length, "drop").group]
    if count > len(dataset):
        raise UserError(f"init '{run.init.name}' asks for {count} seed examples, and the training split of data set "
                        f"'{run.data.name}' has {len(dataset)}; set a smaller init.{run.init.name}.options.seeds")
    picks = np.random.default_rng(stream_seed(run.seed, "extraction", "seeds")).permutation(len(dataset))[:count]
    labelled = FAMILIES[family].scoring == "label"
    if isinstance(run.task, AnswerSpec):
        return _answered([dataset[i] for i in picks.tolist()], tokenizer, family, run.task)
    chosen = dataset.select(picks.tolist())
    encoded = encode(chosen, tokenizer, run.task, labelled, teacher.fingerprint)
    if not labelled:
        return [Seed(encoded.row(i).tolist(), label=int(encoded.labels[i])) for i in range(count)]
    answers = label_ids(tokenizer, run.task.label_words, family == "t5", run.task.template)
    out = []
    for i in range(count):
        ids, answer = encoded.row(i).tolist(), answers[int(encoded.labels[i])]
        out.append(Seed(ids, target=[answer]) if family == "t5" else Seed([*ids, answer], start=len(ids)))
    return out


def _answered(
    chosen: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", family: str, task: AnswerSpec
) -> list[Seed]:
    """Prompts with their whole answers, the end token among these, as in training."""
    found, out = encode_answers(chosen, tokenizer, family, task.max_length, task.too_long, task.new_tokens or 1), []
    flat, begins = found.answers
    for i in range(len(found)):
        ids = found.ids[found.offsets[i] : found.offsets[i + 1]].tolist()
        answer = flat[begins[i] : begins[i] + found.answer_lengths[i]].tolist()
        out.append(Seed(ids, target=answer) if family == "t5" else Seed(ids, start=int(found.starts[i])))
    return out
