"""Whatever happens to a file of a study, `verify` names it, and `--discard` makes the run train anew."""

import json
import os
import shutil
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from portability.store import Store, index
from portability.store.__main__ import main as command
from support.store_parts import broken, change_a_digit, contents, flip, grow, ported, study


@pytest.fixture
def store(tmp_path):
    found = study("format2", tmp_path / "results" / "study")
    grow(found, range(3, 5))
    found.fail(ported(found), {"error": "x"})
    found.compact()
    return found


def say(capsys, *arguments):
    """Exit code and lines of the command."""
    capsys.readouterr()
    code = command([str(word) for word in arguments])
    return code, capsys.readouterr().out.splitlines()


def test_a_sound_study_is_clean_and_counted(store, capsys):
    code, lines = say(capsys, "verify", store.root.parent)
    assert code == 0 and lines == [f"6 runs, {4 + 8 + 2 * 4 + 2 + 1 + 1} files checked: 0 findings"]


@pytest.mark.parametrize("kind", ["format1", "format2"])
def test_fixtures_of_both_formats_are_clean(kind, tmp_path, capsys):
    assert say(capsys, "verify", study(kind, tmp_path / "study").root)[0] == 0


def damage_torn(store, folder):
    (folder / "record.json").write_text((folder / "record.json").read_text()[:40])
    return "does not parse"


def damage_gone(store, folder):
    (folder / "record.json").unlink()
    return "not there or does not parse"


def damage_digit(store, folder):
    change_a_digit(folder / "record.json")
    return "own digest"


def damage_module(store, folder):
    flip(folder / "module.safetensors")
    return "module.safetensors has other bytes"


def damage_cut(store, folder):
    (folder / "predictions.safetensors").write_bytes((folder / "predictions.safetensors").read_bytes()[:-1])
    return "predictions.safetensors has 455 bytes"


def damage_report(store, folder):
    (folder / "port_report.json").unlink()
    return "port_report.json is not there"


def damage_shard(store, folder):
    (store.root / "runs" / "zz").mkdir()
    folder.rename(store.root / "runs" / "zz" / folder.name)
    return "belongs into runs/"


DAMAGES = [damage_torn, damage_gone, damage_digit, damage_module, damage_cut, damage_report, damage_shard]


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_unsound_run_is_named_and_discarded_and_counts_as_not_done(store, damage, capsys):
    run_id = ported(store)
    what = damage(store, store.folder(run_id))
    code, lines = say(capsys, "verify", store.root)
    assert code == 1 and len(lines) == 2 and lines[-1].endswith(": 1 finding")
    assert what in lines[0] and run_id in lines[0] and "--discard" in lines[0]
    files = sum(1 for path in store.root.rglob("*") if path.is_file())
    code, lines = say(capsys, "verify", store.root, "--discard")
    assert code == 1 and f"to discarded/{run_id}-1" in "".join(lines)
    assert not store.has(run_id) and run_id not in broken(store)
    assert sum(1 for path in store.root.rglob("*") if path.is_file()) == files, "something was deleted"
    assert say(capsys, "verify", store.root)[0] == 0


def test_a_run_discarded_twice_keeps_both(store, capsys):
    run_id = ported(store)
    kept = shutil.copytree(store.folder(run_id), store.root.parent / "kept")
    for _ in range(2):
        damage_torn(store, store.folder(run_id))
        say(capsys, "verify", store.root, "--discard")
        shutil.copytree(kept, store.folder(run_id))
    assert sorted(os.listdir(store.root / "discarded")) == [f"{run_id}-1", f"{run_id}-2"]


def test_two_swapped_folders_are_both_named(store, capsys):
    one, two = list(store.marks())[:2]
    aside = store.root / "aside"
    store.folder(one).rename(aside)
    store.folder(two).rename(store.folder(one))
    aside.rename(store.folder(two))
    code, lines = say(capsys, "verify", store.root)
    assert code == 1 and f"its record is that of run {two}" in "\n".join(
        lines) and f"that of run {one}" in "\n".join(lines)


def test_a_record_that_was_sealed_again_under_another_name_is_named(store, capsys):
    """Both digests are right; the id is not that of the spec."""
    from portability.store.records import seal

    run_id, other = ported(store), "ab" * 8
    store.folder(other).parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(store.folder(run_id), store.folder(other))
    record = store.read(run_id)
    (store.folder(other) / "record.json").write_text(json.dumps(seal({**record, "run_id": other},
                                                                     record["files"])))
    code, lines = say(capsys, "verify", store.root)
    assert code == 1 and all(f"the digest of its spec is {run_id}" in line
                             for line in lines[:-1]) and len(lines) == 3


def test_a_run_whose_origin_is_missing_is_named(store, capsys):
    origin = store.read(ported(store))["spec"]["origin"]
    shutil.rmtree(store.folder(origin))
    code, lines = say(capsys, "verify", store.root)
    assert code == 1 and len(lines) == 2 + 2 and all(f"starts from run {origin}" in line
                                                     for line in lines[:-1])


def test_a_changed_manifest_is_named_and_so_is_a_torn_one_and_a_failure(store, capsys):
    one, two = sorted((store.root / "manifests").iterdir())
    one.write_text(one.read_text().replace('"budget": 2', '"budget": 3'))
    two.write_text(two.read_text()[:50])
    (failure,) = (store.root / "failures").iterdir()
    failure.write_text("{}")
    code, lines = say(capsys, "verify", store.root)
    text = "\n".join(lines)
    assert code == 1 and len(lines) == 4
    assert f"manifests/{one.name}: it was changed" in text and f"{two.name} is no manifest" in text
    assert f"failures/{failure.name}: it is no failure" in text


def test_strays_and_what_killed_processes_left_are_named(store, capsys):
    (store.folder(ported(store)) / "notes.txt").write_text("x")
    (store.root / "runs" / "readme").write_text("x")
    (store.root / "runs" / "ab").mkdir(exist_ok=True)
    (store.root / "runs" / "ab" / "odd").mkdir()
    for age, name in ((0, "young"), (90000, "old")):
        draft = store.root / "runs" / "ab" / f".draft-{name}"
        draft.mkdir()
        os.utime(draft, (draft.stat().st_atime - age, draft.stat().st_mtime - age))
    code, lines = say(capsys, "verify", store.root)
    assert code == 1 and len(lines) == 5 and "young" not in "".join(lines)
    for part in ("notes.txt is not named", "runs/readme: it is no run", "runs/ab/odd: it is no run",
                 ".draft-old: a killed"):
        assert part in "\n".join(lines)


def test_records_of_another_version_are_named_and_not_discarded(store, capsys):
    run_id = ported(store)
    path = store.folder(run_id) / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 9}))
    code, lines = say(capsys, "verify", store.root, "--discard")
    assert code == 1 and "format 9" in lines[0] and "version that wrote it" in lines[0] and path.exists()


def test_an_index_that_disagrees_is_named(store, capsys):
    path = store.root / index.NAME
    table = pq.read_table(path)
    texts = table.column("record").to_pylist()
    texts[0] = texts[0].replace('"updates":2', '"updates":7')
    pq.write_table(table.set_column(3, "record", pa.array(texts)), path)
    code, lines = say(capsys, "verify", store.root)
    assert code == 1 and "its row of run" in lines[0] and "compact" in lines[0]
    path.write_bytes(path.read_bytes()[:300])
    assert "cannot be read" in say(capsys, "verify", store.root)[1][0]
    path.unlink()
    assert say(capsys, "verify", store.root)[0] == 0


def test_no_study_is_the_users_to_put_right(tmp_path, capsys):
    assert command(["verify", str(tmp_path)]) == 2 and "no study in" in capsys.readouterr().err
    assert command(["compact", str(tmp_path)]) == 2 and command(["tidy", str(tmp_path)]) == 2
    assert command(["pack", str(tmp_path), "--out", str(tmp_path / "x")]) == 2 and contents(tmp_path) == {}


@pytest.mark.system
def test_the_commands_need_no_torch(store, tmp_path):
    code = (
        "import sys; from portability.store.__main__ import main; from portability.store import Store\n"
        f"assert main(['verify', r'{store.root}']) == 0 and main(['compact', r'{store.root}']) == 0\n"
        f"assert main(['pack', r'{store.root}', '--out', r'{tmp_path / 'copy'}']) == 0\n"
        f"assert main(['merge', r'{tmp_path / 'new'}', r'{store.root}']) == 0\n"
        f"assert main(['tidy', r'{store.root}']) == 0 and main(['verify', r'{tmp_path / 'copy'}']) == 0\n"
        f"copy = Store(r'{tmp_path / 'copy'}'); [copy.predictions(i) for i in copy.marks()]; import "
        "portability.analysis.load\nportability.analysis.load.read(copy); assert 'torch' not in sys.modules "
        "and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    light = "import sys; sys.argv[1:] = ['--help']; import runpy\n"
    light += "try:\n runpy.run_module('portability.store', run_name='__main__')\n"
    light += "except SystemExit: assert not {'torch', 'pyarrow', 'pandas', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", light], capture_output=True).returncode == 0


def test_compact_says_how_much_it_read(store, capsys):
    (store.root / index.NAME).unlink()
    assert "6 records read anew" in say(capsys, "compact", store.root)[1][0]
    assert "0 records read anew" in say(capsys, "compact", Store(store.root).root)[1][0]


def test_an_origin_in_another_study_does_not_stand_in_for_one_that_is_missing(store, capsys):
    other = study("format2", store.root.parent / "astudy")  # whole, and read first
    origin = store.read(ported(store))["spec"]["origin"]
    shutil.rmtree(store.folder(origin))
    code, lines = say(capsys, "verify", store.root.parent)
    assert code == 1 and any(f"starts from run {origin}, which is not there" in line for line in lines)
    assert other.sound(origin) is None
