"""Makes a virtual environment with pip, also where Python came without ensurepip (Debian).

python tools/make_venv.py FOLDER
"""

import importlib.util
import subprocess
import sys
import venv
from pathlib import Path


def main(folder: str) -> None:
    """Make the environment, unless it is there; a half-made one is replaced."""
    if sys.version_info < (3, 11):  # noqa: UP036 (this runs before pip could refuse)
        sys.exit(f"Python 3.11 or later is needed, this is {sys.version.split()[0]}: make PYTHON=")
    python = Path(folder, "bin", "python")
    if python.exists() and Path(folder, ".installed").exists():
        return
    own_pip = importlib.util.find_spec("ensurepip") is not None
    venv.create(folder, clear=True, with_pip=own_pip, symlinks=True)
    if not own_pip:
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "pip"]
        subprocess.run(pip, check=True)


if __name__ == "__main__":
    main(sys.argv[1])
