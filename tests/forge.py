"""Runs scripts in processes of their own that need not import torch and transformers anew.

One process imports what takes seconds; every script runs in a fork of it, as ``__main__``.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Not what starts threads: a fork would not have them.
LOADED = (
    "optuna",
    "torch",
    "transformers.models.llava.modeling_llava",
    "transformers.models.llava_next.modeling_llava_next",
    "transformers.models.llava_next.processing_llava_next",
    "prunetune.models",
    "prunetune.runtime",
)


class Forge:
    """A process that runs scripts in forks of itself; a context manager."""

    def __enter__(self):
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()

    def run(self, script, *words, folder):
        """Run a file, or a module by its dotted name; return its exit status and what it said."""
        said = Path(folder) / "said.txt"
        order = {"words": [str(script), *map(str, words)], "folder": str(folder), "said": str(said)}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        return status, said.read_text("utf-8", errors="replace")


def _run(words, folder, said):
    """Become the script; never returns."""
    import runpy
    import traceback

    out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    status = 1
    try:
        os.chdir(folder)
        sys.argv = words
        if words[0].endswith(".py"):
            sys.path.insert(0, str(Path(words[0]).parent))
            runpy.run_path(words[0], run_name="__main__")
        else:
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1 if end.code else 0
        if isinstance(end.code, str):
            print(end.code)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _serve():
    import importlib

    for name in LOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            _run(order["words"], order["folder"], order["said"])
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
