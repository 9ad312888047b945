"""A grid that is killed, starved and corrupted at random ends in the same table, and nothing finished is
trained twice."""

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from portability.analyze import main as analyze
from portability.execution.leases import Leases
from portability.store import Store
from portability.store.__main__ import main as store_command
from support.studies import launch, wait_for

GRID = ("study=chaos", "method=[lora,adapter]", "grid.pairs=[[raw_base,tuned_base],[tuned_base,raw_base]]",
        "grid.seeds=[0,1,2]", "grid.inits=[ported,sampled,scratch]", "+grid.relations.different=nano_meals",
        "grid.budgets=[30,60]", "engine.checkpoint_seconds=0.5", "engine.stack=8", "engine.workers=2")
WORKERS, PARENTS = 20, (4, 9, 14)  # kills of workers, and after which of them the parent is killed too
DISK = 12  # after which kill the disk is filled
MEGABYTES = 48


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, so that it can be filled."""
    root = tmp_path / "results"
    root.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "none", str(root)],
                          capture_output=True)
    if made.returncode:
        pytest.skip("needs the right to mount a small file system")
    yield root
    subprocess.run(["umount", "-l", str(root)], check=True)


def at_work(root):
    """Processes that have runs in hand now."""
    return sorted({claim.pid for claim in Leases(root).all().values() if Path(f"/proc/{claim.pid}").exists()})


class Watch:
    """Remembers when each record was written, and notices one that was written again."""

    def __init__(self, store):
        self.store, self.seen, self.twice = store, {}, []

    def look(self):
        for path in (self.store.root / "runs").glob("??/????????????????/record.json"):
            try:
                written = path.stat().st_mtime_ns
            except FileNotFoundError:
                continue
            if self.seen.setdefault(path.parent.name, written) != written:
                self.twice.append(path.parent.name)
                self.seen[path.parent.name] = written


def disturb(process, draw, watch, kills, root):
    """Kill workers, then perhaps the parent, or fill the disk, until the command ends. Gives back the kills
    made so far."""
    while process.poll() is None:
        watch.look()
        time.sleep(draw.uniform(0.1, 0.8))
        found = at_work(root / "chaos")
        if kills < WORKERS and found:
            os.kill(draw.choice(found), signal.SIGKILL)
            kills += 1
            if kills in PARENTS:
                time.sleep(draw.uniform(0.0, 1.0))
                process.kill()
                return kills
            if kills == DISK:
                return fill(process, root, kills)
    return kills


def fill(process, root, kills):
    """Write until nothing fits, wait for the command to say so, and make room again."""
    ballast = root / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    output = process.communicate(timeout=120)[0]
    ballast.unlink()
    assert process.returncode == 2 and "No space left" in output and "Traceback" not in output, output
    return kills


def tables(root):
    assert analyze([str(root / "chaos"), "--quiet"]) == 0
    found = {path.name: path.read_text().splitlines()
             for path in sorted((root / "chaos" / "tables").glob("*.csv"))}
    # time on the clock is another each time
    found["cost.csv"] = [line for line in found["cost.csv"] if "seconds" not in line]
    return found


def flip(path: Path, place: int):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_chaos_changes_no_digit_of_any_table(data_folders, make_host, tmp_path, small_disk, capsys):
    calm = launch(tmp_path / "calm", data_folders, make_host, *GRID)
    assert calm.wait(timeout=600) == 0
    expected = tables(tmp_path / "calm")
    store, draw, kills, launches = Store(small_disk / "chaos"), random.Random(4), 0, 0
    watch = Watch(store)
    while True:
        process = launch(small_disk, data_folders, make_host, *GRID)
        launches += 1
        kills = disturb(process, draw, watch, kills, small_disk)
        code = process.wait(timeout=60)
        watch.look()
        if code == 0:
            break
        assert launches < 15
    assert len(watch.seen) >= 60 and kills == WORKERS, (len(watch.seen), kills)
    assert not watch.twice, "finished runs were trained again"
    assert tables(small_disk) == expected

    tampered, spoiled = draw.sample(sorted(i for i in watch.seen if store.read(i)["cell"]["method"]), 2)
    record = store.folder(tampered) / "record.json"
    flip(record, record.read_bytes().index(b'"eval_loss": ') + len(b'"eval_loss": '))
    flip(store.folder(spoiled) / "module.safetensors", -1)
    capsys.readouterr()
    assert store_command(["verify", str(store.root), "--discard"]) == 1
    said = capsys.readouterr().out
    assert tampered in said and spoiled in said and "module.safetensors" in said
    assert launch(small_disk, data_folders, make_host, *GRID).wait(timeout=300) == 0
    watch.look()
    assert sorted(watch.twice) == sorted([tampered, spoiled])
    assert tables(small_disk) == expected and store_command(["verify", str(store.root)]) == 0


def test_two_commands_on_one_store_share_the_work(data_folders, make_host, tmp_path):
    grid = [word for word in GRID if "seeds" not in word] + ["grid.seeds=[0,1]", "engine.workers=1",
                                                             "engine.stack=2"]
    both = [launch(tmp_path, data_folders, make_host, *grid) for _ in range(2)]
    store = Store(tmp_path / "chaos")
    watch = Watch(store)
    shared: set[int] = set()

    def over():
        watch.look()
        shared.update(at_work(store.root))
        return all(process.poll() is not None for process in both)

    wait_for(over, 300)
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert not watch.twice, "a run was executed twice"
    assert len(shared) == 2, "one command did all the work"
    assert all("0 failed, 0 missing" in output for output in outputs)
    assert store_command(["verify", str(store.root)]) == 0


def test_sigterm_drains_within_ten_seconds_and_keeps_what_is_in_training(data_folders, make_host, tmp_path):
    words = ("study=drain", "grid.budgets=[3000]", "method=lora", "grid.inits=[scratch]", "engine.workers=1")
    process = launch(tmp_path, data_folders, make_host, *words, "engine.stack=4")
    store = Store(tmp_path / "drain")
    wait_for(lambda: list((store.root / "running").glob("*.json")) or process.poll() is not None)
    time.sleep(4)
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 128 + signal.SIGTERM
    assert "terminated; finished runs and checkpoints are kept" in output
    assert time.monotonic() - started < 10
    assert list((store.root / "checkpoints").glob("*.safetensors")), "what was in training is lost"
    assert list((store.root / "running").iterdir()) == [], "a claim was left behind"


def test_a_run_that_takes_too_long_is_killed_and_named(data_folders, make_host, tmp_path):
    words = ("study=late", "grid.budgets=[100000]", "method=lora", "grid.inits=[scratch]", "grid.seeds=[0]",
             "engine.workers=1", "engine.timeout_minutes=0.1", "grid.pairs=[[raw_base,raw_base]]")
    process = launch(tmp_path, data_folders, make_host, *words)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 1 and "timed out after" in output and "retry=failed" in output, output
    assert [failure["kind"] for failure in Store(tmp_path / "late").failures().values()] == ["TimedOut"]


