"""How long a report of a 500-trial study takes, how much memory, and how large the page is.

    python benchmarks/report.py --study studies/tiny-keep0.25

Takes a finished study (by default a search of three trials, run first), adds made trials until it
has 500, and runs `prunetune report` on it in a fresh process: study read from SQLite, model loaded,
the eight worst samples run again.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("", "review", "study")]


def prunetune(*words: object) -> dict:
    command = [sys.executable, "-m", "prunetune", *map(str, words), "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def grow(folder: Path, trials: int) -> int:
    """Add made trials to a study until it has ``trials``; return how many it has."""
    from made_studies import made_study

    from prunetune.study.database.storage import quiet
    from prunetune.study.find import find_study

    study = find_study(str(folder)).study
    have = len(study.trials)
    with quiet():
        study.add_trials(made_study(max(0, trials - have), presets=0).trials)
    return len(study.trials)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", help="a finished study of the embedded model; it is copied")
    parser.add_argument("--trials", type=int, default=500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "study"
        if options.study:
            shutil.copytree(options.study, folder)
        else:
            prunetune("search", "--model", "tiny", "--trials", 3, "--out", folder, "--no-report")
        count = grow(folder, options.trials)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begun = time.monotonic()
        found = prunetune("report", folder, "--threads", 1)
        seconds = time.monotonic() - begun
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(
            f"{count} trials: {seconds:.1f} s ({cpu:.1f} s CPU), "
            f"{after.ru_maxrss / 2**20:.2f} GiB at most, page {found['bytes'] / 2**20:.1f} MiB, "
            f"pictures: {found['pictures']} {found['missing']}"
        )


if __name__ == "__main__":
    main()
