"""Tasks of prompts and answers as data sets, and studies of them."""

import numpy as np

from support.studies import study as composed
from support.tiny import BAD, GOOD, PLAIN

INITS = "grid.inits=[extracted,scratch,extracted_noise,extracted_random,pissa]"


def rows(kind, count, seed):
    """Prompts of three to six words, and an answer that follows from the first: two words to write, or one of
    three."""
    draw, seen, out = np.random.default_rng(seed), set(), []
    while len(out) < count:
        words = [str(word) for word in draw.permutation(PLAIN)[: draw.integers(3, 7)]]
        if (prompt := " ".join(words) + " :") in seen:
            continue
        seen.add(prompt)
        place = PLAIN.index(words[0]) % 3
        if kind == "written":
            out.append({"prompt": prompt, "answer": f"{GOOD[place]} {BAD[0]}" if place else GOOD[0]})
        else:
            choices = [GOOD[0], f"{GOOD[1]} {BAD[1]}", BAD[2]]
            out.append({"prompt": prompt, "choices": choices, "answer": place})
    return out


def tasks(sets, make_host, family, *more):
    """A study of two tasks on a larger and a smaller host of a family."""
    teacher, student = make_host(family, 48, 3, 6, 2), make_host(family, 32, 2, 4, 1)
    return composed(
        f"host.nano-raw-large.path={teacher.source}", f"host.nano-raw-base.path={student.source}",
        "+sweep=extract", "host_set=nano", f"data.sums.path={sets}/written", f"data.quiz.path={sets}/chosen",
        "grid.study_data=[sums,quiz]", "grid.data=[sums,quiz]", "grid.seeds=[0]", "grid.budgets=[3]", INITS,
        "task.max_length=24", "init.extracted.options.seeds=8", "init.extracted_noise.options.seeds=8",
        "method.lora_all.settings.r=4", "method.lora_all.settings.alpha=4",
        "method.lora_all.learning_rate=0.01", "tracking.wandb=disabled", "yes=true",
        "engine=inprocess", "engine.device=cpu", "similarity=false", *more)


def of_data(planned, name, kind):
    return [run for run in planned.runs.values() if run.data.name == name and run.init.kind == kind]
