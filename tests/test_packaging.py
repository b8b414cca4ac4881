"""What `pip wheel .` carries, and that it is enough."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 40 * 2**20
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    # --no-index: the build is what an installation without a network can do.
    done = run([*pip, "--no-index", "-w", folder, ROOT])
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("prunetune-*.whl")
    return found


def run(command, **options):
    return subprocess.run(command, check=False, capture_output=True, text=True, **options)


def names_in(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def shipped(folder, into):
    files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    files = [path for path in files if "__pycache__" not in path.parts]
    assert files
    return {f"{into}/{path.relative_to(ROOT / folder).as_posix()}" for path in files}


def test_the_wheel_carries_what_a_search_needs(wheel):
    names = names_in(wheel)
    assert shipped("prunetune", "prunetune") <= names
    assert shipped("calibration_data", "prunetune/calibration_data") <= names
    specs = {f"prunetune/studies/{path.name}" for path in (ROOT / "studies").glob("*.toml")}
    assert len(specs) >= 3
    assert specs <= names
    for needed in (
        "prunetune/py.typed",
        "prunetune/presets/topv.json",
        "prunetune/embedded/tiny/model.safetensors",
        "prunetune/calibration_data/tiny/calibration/metadata.jsonl",
        "prunetune/calibration_data/tiny/held_out/metadata.jsonl",
    ):
        assert needed in names


def test_the_wheel_carries_nothing_else(wheel):
    names = names_in(wheel)
    tops = {name.split("/")[0] for name in names}
    assert tops == {"prunetune", f"prunetune-{PROJECT['version']}.dist-info"}
    for name in names:
        assert "__pycache__" not in name
        assert not name.endswith((".pyc", ".db", ".log", ".bin", ".pt", ".pkl"))


def test_results_beside_the_specs_stay_at_home(wheel):
    names = [name for name in names_in(wheel) if name.startswith("prunetune/studies/")]
    assert all(re.fullmatch(r"prunetune/studies/[\w.-]+\.toml", name) for name in names)


def test_the_wheel_is_small(wheel):
    assert wheel.stat().st_size < LIMIT


def test_the_wheel_has_the_licence_and_the_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (info,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
        entries = archive.read(info).decode()
        assert "prunetune = prunetune.cli:main" in entries
        assert "[vllm.general_plugins]\nprunetune = prunetune.vllm:register" in entries
        (licence,) = (n for n in archive.namelist() if n.endswith("licenses/LICENSE"))
        assert "Apache License" in archive.read(licence).decode()
        (metadata,) = (n for n in archive.namelist() if n.endswith("METADATA"))
        text = archive.read(metadata).decode()
    assert "License-Expression: Apache-2.0" in text
    required = [x for x in text.splitlines() if x.startswith("Requires-Dist") and "extra" not in x]
    assert {re.split(r"[<>,;]", x.split()[1])[0] for x in required} == {
        "torch",
        "transformers",
        "pydantic",
        "pillow",
        "safetensors",
    }


def test_there_is_one_version():
    import prunetune

    assert prunetune.__version__ == PROJECT["version"]


@pytest.mark.script
def test_the_installed_wheel_searches_from_any_folder(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = tmp_path / "env" / "lib" / version / "site-packages"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps"]
    subprocess.run([*install, "--no-index", wheel], check=True)
    # Dependencies are lent by this environment; an editable prunetune in it must not win.
    lent = next(p for p in map(Path, sys.path) if (p / "torch" / "__init__.py").exists())
    (site / "lent.pth").write_text(f"{lent}\n")
    away = tmp_path / "away"
    away.mkdir()
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    where = [python, "-c", "import prunetune; print(prunetune.__file__)"]
    place = run(where, cwd=away, env=env)
    assert place.stdout.startswith(str(site))
    # The shipped pictures; of the held-out ones two, or the table would take minutes.
    held_out = away / "few"
    held_out.mkdir()
    shipped_held_out = site / "prunetune" / "calibration_data" / "tiny" / "held_out"
    rows = (shipped_held_out / "metadata.jsonl").read_text("utf-8").splitlines()[:2]
    (held_out / "metadata.jsonl").write_text("\n".join(rows))
    for name in {json.loads(row)["file_name"] for row in rows}:
        shutil.copy(shipped_held_out / name, held_out)
    search = [tmp_path / "env" / "bin" / "prunetune", "search", "--model", "tiny", "--keep", "0.25"]
    search += ["--trials", "2", "--samples", "4", "--held-out", held_out, "--json"]
    done = run(search, cwd=away, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    config = away / result["config"]
    assert config.is_file()
    assert away in config.resolve().parents
