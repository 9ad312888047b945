"""An installed wheel works from any folder: configuration, sweeps, hosts and data travel in it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_wheel_plans_the_demo_and_runs_from_an_empty_folder(tmp_path):
    wheels, site, away = (tmp_path / name for name in ("wheels", "site", "away"))
    source = tmp_path / "source"
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others",
                             "--exclude-standard"],
                            capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists() or (ROOT / name).is_symlink():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_symlink():
                (source / name).symlink_to(os.readlink(ROOT / name))
            else:
                (source / name).write_bytes((ROOT / name).read_bytes())
    away.mkdir()
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(source)],
                   check=True)
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(next(wheels.glob("*.whl")))],
                   check=True)

    def run(module, *arguments):
        code = f"import sys, runpy; sys.path.insert(0, {str(site)!r}); " \
               f"sys.argv = [{module!r}, *sys.argv[1:]]; runpy.run_module({module!r}, run_name='__main__')"
        return subprocess.run([sys.executable, "-I", "-c", code, *arguments], cwd=away, capture_output=True,
                              text=True)

    where = run("portability.run", "+sweep=demo", "mode=plan")
    assert where.returncode == 0 and "study demo" in where.stdout, where.stderr
    names = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    assert "portability/conf/sweep/demo.yaml" in names and "portability/analysis/tables/registry.py" in names
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"bin", "portability"}
    assert [name for name in names if name.startswith("bin/")] == ["bin/portability"]
    for kind in ("method", "host", "data", "init", "port", "protocol"):
        assert len([name for name in names if name.startswith(f"portability/conf/{kind}/")]) == len(
            list((ROOT / "conf" / kind).glob("*.yaml")))
    assert len([name for name in names if name.endswith("model.safetensors")]) == 7
    nothing = run("portability.analyze", "results/")
    assert nothing.returncode == 2 and "nothing was run there yet" in nothing.stderr
