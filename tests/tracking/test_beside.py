"""Processes beside a command: what they may do to it, and it to them."""

import subprocess

import psutil
import pytest

from portability.tracking import beside
from portability.tracking.beside import end, filing, send_study
from portability.tracking.runs import LEFT_ALONE, TrackingSpec

pytestmark = pytest.mark.usefixtures("no_home")


@pytest.fixture
def spec(tmp_path):
    return TrackingSpec("offline", "portability", tmp_path / "my study")


class Ended:
    """A process that has ended."""

    stdin = None

    def __init__(self, code):
        self.code = code

    def wait(self, seconds=None):
        return self.code


def test_what_left_wandb_alone_has_said_so_and_nothing_more_is_sent(spec, caplog):
    assert end(Ended(0), 1, spec) and not end(Ended(LEFT_ALONE), 1, spec) and caplog.text == ""
    assert not end(Ended(1), 1, spec)
    assert f"portability publish '{spec.folder}' --to wandb sends what is missing" in caplog.text


def test_another_project_is_named_in_what_sends_the_rest(tmp_path):
    words = TrackingSpec("offline", "mine", tmp_path).remedy.split()
    assert words == ["portability", "publish", str(tmp_path), "--to", "wandb", "--project", "mine"]


def test_where_no_process_can_be_started_the_study_goes_on(spec, monkeypatch, caplog):
    def fails(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", fails)
    went_on = False
    with filing(spec):
        went_on = True
    send_study(spec)
    assert went_on and caplog.text.count("W&B is left alone (no process can be started for it: ") == 2


@pytest.mark.parametrize("fault", [OSError, KeyboardInterrupt])
@pytest.mark.system
def test_what_breaks_in_the_block_is_the_blocks(spec, monkeypatch, caplog, fault):
    monkeypatch.setattr(beside, "sys", _program(spec, "read line"))
    with pytest.raises(fault, match="of the study"), filing(spec):
        raise fault("of the study")
    assert caplog.text == ""


def _program(spec, text):
    """In the place of sys: a shell script in the place of Python."""
    program = spec.folder.parent / "python"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return type("Sys", (), {"executable": str(program)})


@pytest.mark.system
def test_what_interrupts_the_sending_of_a_study_ends_it(spec, monkeypatch):
    def interrupted(process, seconds, _):
        assert process.poll() is None
        raise KeyboardInterrupt

    before = set(psutil.Process().children())
    monkeypatch.setattr(beside, "sys", _program(spec, "sleep 60 & sleep 60"))
    monkeypatch.setattr(beside, "end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        send_study(spec)
    assert not set(psutil.Process().children()) - before, "it is still there"


@pytest.mark.system
def test_what_lies_in_the_users_folder_is_not_imported(spec, monkeypatch, caplog):
    (spec.folder.parent / "filelock.py").write_text("import os\nos._exit(9)")
    monkeypatch.chdir(spec.folder.parent)
    spec.folder.mkdir()
    with filing(spec):
        monkeypatch.setattr(beside, "send_study", lambda _: None)
    assert "exit code" not in caplog.text and (spec.folder / "running").is_dir(), caplog.text
