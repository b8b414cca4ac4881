"""The whole way by one command, which goes on where it was left: fetch, assemble, write, train.

    python -m benchmarks.real_parts --out runs/real-parts
    python -m benchmarks.real_parts --out runs/stand-in --stand-in --steps 2

Needs pip's index and Debian's once, about 400 MB, then up to six hours of one core. At the end
`runs/real-parts/model` and `runs/real-parts/data` are a witness for second_opinion.py. --stand-in
tries the way with a random model and painted pictures, without any download.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.real_parts.environment import prepared

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stand-in", action="store_true", help="no real weights or pictures")
    parser.add_argument("--until", choices=("assemble", "train"), default="train")
    options, rest = parser.parse_known_args()
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    python = sys.executable if options.stand_in else str(prepared(out / "environment"))

    def run(name: str, *words: str) -> None:
        paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        limits = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}
        command = [python, "-m", f"benchmarks.real_parts.{name}", *words]
        subprocess.run(command, check=True, env={**os.environ, **limits})

    given: list[str] = []
    if options.stand_in:
        run("stand_in", "--out", str(out / "parts"))
    else:
        from benchmarks.real_parts.cutouts import unpacked

        given = ["--files", str(unpacked(out))]
        if not (out / "parts" / "assembly.json").is_file():
            run("assemble", "--out", str(out / "parts"))
    run("composites", "--out", str(out / "data"), *given)
    if options.until == "train":
        run("train", "--out", str(out), *given, *rest)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        raise SystemExit(error.returncode) from error
