"""Small studies, as compositions of the command's configuration, and the command in a process of its own."""

import os
import subprocess
import sys
import time
from pathlib import Path

from portability.run import compose
from support.tiny import CONF


def study(*overrides):
    return compose(overrides)


def small(data_folders, make_host, *overrides):
    """A study on tiny hosts and data, given by overrides alone."""
    one, two = make_host("t5", 32, 2, 4, 0), make_host("t5", 32, 2, 4, 1)
    return study(
        f"host.nano-raw-base.path={one.source}", f"host.nano-tuned-base.path={two.source}",
        f"data.nano_films.path={data_folders['one']}", f"data.nano_meals.path={data_folders['two']}",
        "grid.study_data=[nano_films,nano_meals]", "grid.budgets=[2,4]", "grid.seeds=[0,1]",
        "task.template='{text} answer :'", "task.max_length=48", "similarity=false", *overrides)


def command(*arguments, cwd, **environment):
    root = str(Path(__file__).parents[2])
    return subprocess.run([sys.executable, "-m", "portability.run", *arguments], cwd=cwd, capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": root, **environment}, timeout=300)


OFF = ("tracking.wandb=disabled", "engine.workers=1")
SLOW = ("method=lora", "grid.inits=[scratch,ported]", "grid.seeds=[0,1]", "grid.budgets=[120]",
        "tracking.wandb=disabled", "engine.workers=2", "engine.stack=1")


def launch(root, data_folders, make_host, *extra):
    one, two = make_host("t5", 32, 2, 4, 0), make_host("t5", 32, 2, 4, 1)
    arguments = [
        f"host.nano-raw-base.path={one.source}", f"host.nano-tuned-base.path={two.source}",
        f"data.nano_films.path={data_folders['one']}", f"data.nano_meals.path={data_folders['two']}",
        "grid.study_data=[nano_films,nano_meals]", "task.template='{text} answer :'", "similarity=false",
        f"results={root}", "study=kill", *SLOW]
    return subprocess.Popen([sys.executable, "-m", "portability.run", *arguments, *extra], cwd=CONF.parent,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            start_new_session=True)


def wait_for(condition, seconds=120):
    until = time.time() + seconds
    while not condition():
        assert time.time() < until, "nothing happened"
        time.sleep(0.1)


def children(pid):
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(one) for one in listed.split()]


def slow_to_score(folder, tmp_path):
    return (f"data.nano_films.path={folder}", "grid.budgets=[40]", "grid.seeds=[0]", "grid.inits=[scratch]",
            "method=lora",
            "eval.batch_size=16", "tracking.wandb=disabled", f"results={tmp_path}", "study=slow",
            "engine=inprocess")
