"""Somebody's own data in one file, from an empty folder to records: what is asked is shown before work, and a
limited study lies apart."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from portability.studies import cells


def test_five_questions_and_a_limited_run(tmp_path):
    rows = [{"text": f"message number {place} of the day", "label": ("negative", "positive")[place % 2]}
            for place in range(60)]
    (tmp_path / "mails.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "WANDB_MODE": "disabled"}

    def said(*words, answers=""):
        done = subprocess.run([sys.executable, "-m", "portability", *words], cwd=tmp_path, env=environment,
                              input=answers, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done

    assert "wrote mine.yaml" in said("init", "mine.yaml", answers="\n\n\nmails.jsonl\n\n").stdout
    words = ("run", "mine.yaml", "--limit", "10", "grid.seeds=[0]", "grid.budgets=[2]", "similarity=false",
             "engine=inprocess")
    done = said(*words)
    asked = (r"example of mails on nano-tuned-base, nano-raw-base: "
             r"'question : negative or positive \? message number \d+ of the day answer :' -> 'negative' or "
             r"'positive'\n  tokens: \['.*negative'\].*\n  read as \d+ tokens: \[")
    assert re.search(asked, done.stderr), done.stderr
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["mine-limit-10"]
    found = cells(tmp_path / "results/mine-limit-10")
    assert set(found["status"]) == {"done"} and set(found["init"]) == {"bare", "ported", "sampled", "scratch"}
    assert "0 of 5 runs to do in study mine-limit-10" in said(*words).stderr
