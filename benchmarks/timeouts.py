"""Whether `search --timeout T` ends in time on a busy machine, and with what: docs/search.md.

Each case is a process of its own, from start to exit, beside one that spins. Allowed are 1.1 T and
10 s. Beside each figure stands the load average, since other processes make all of it slower.

    python benchmarks/timeouts.py                       # 60, 120 and 300 s, three kinds of search
    python benchmarks/timeouts.py --seconds 60 --cases keep
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import finish, markdown

CASES = {
    "keep": ("--keep", "0.25"),
    "max-drop": ("--max-drop", "2"),
    "pareto": ("--objective", "pareto", "--keep", "0.05:0.5"),
    "workers": ("--keep", "0.25", "--workers", "2"),
    "vllm": ("--keep", "0.25", "--engine", "vllm"),
}


def ran(seconds: float, case: str, folder: Path) -> dict[str, object]:
    """Return what a search of one case took, and what it ended with."""
    command = [sys.executable, "-m", "prunetune", "search", "--model", "tiny", *CASES[case]]
    command += ["--timeout", f"{seconds:g}", "--threads", "1", "--out", str(folder), "--json"]
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    took, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    result = json.loads(done.stdout.splitlines()[-1])
    rows = result.get("baselines") or [b for p in result.get("points", []) for b in p["baselines"]]
    return {
        "seconds": seconds,
        "case": case,
        "wall": took,
        "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "in_time": took <= 1.1 * seconds + 10,
        "status": done.returncode,
        "trials": result.get("trials", {}).get("complete", 0),
        "compared": sum(row["held_out_gap"] is not None for row in rows),
        "rivals": len(rows),
        "load": os.getloadavg()[0],
        "said": result.get("verdict") or result.get("error"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, nargs="+", default=[60.0, 120.0, 300.0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["keep", "max-drop", "pareto"])
    arguments = parser.parse_args()
    found = []
    spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        with tempfile.TemporaryDirectory() as folder:
            for seconds in arguments.seconds:
                for case in arguments.cases:
                    found.append(ran(seconds, case, Path(folder) / f"{case}-{seconds:g}"))
                    print(found[-1], file=sys.stderr, flush=True)
    finally:
        spinning.kill()
    heads = ("T, s", "search", "wall, s", "CPU, s", "in time", "trials", "compared", "load")
    rows = [
        (
            f"{row['seconds']:g}", str(row["case"]), f"{row['wall']:.0f}", f"{row['cpu']:.0f}",
            "yes" if row["in_time"] else "NO", str(row["trials"]),
            f"{row['compared']} of {row['rivals']}", f"{row['load']:.1f}",
        )
        for row in found
    ]  # fmt: skip
    print("\n".join(markdown(heads, rows)))
    finish({"runs": found})


if __name__ == "__main__":
    main()
