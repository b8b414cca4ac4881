"""Peak memory of a search at few and many calibration samples: references stay on disk.

A random LLaVA-NeXT of 8 layers, d=256 and 423 image tokens; each search runs in a process of its
own with an empty cache on disk, and its peak is the kernel's (VmHWM: mapped pages count while they
are mapped). What it would take in memory is what the cache holds in the end.

    python benchmarks/search_memory.py [--samples 64 512] [--trials 2] --json
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from common import finish
from mid import load_mid, mid_samples

from prunetune.measure.evaluator import Evaluator
from prunetune.spec import StudySpec
from prunetune.study.study import run_trials

SIDE, KEEP, DEEPEST = 9, 0.5, 3
MIB = 1 << 20


def peak() -> float:
    """Return this process's peak resident memory in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("VmHWM is not in /proc/self/status: this needs Linux")


def child(samples: int, trials: int) -> None:
    torch.set_num_threads(1)
    loaded, data = load_mid(8, 256, SIDE), mid_samples(samples, side=SIDE)
    # One window warms up what is allocated once.
    list(Evaluator(loaded, data.limit(1), deepest=DEEPEST).samples)
    before = peak()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        evaluator = Evaluator(loaded, data, deepest=DEEPEST, cache=folder / "cache")
        spec = StudySpec(model="mid", keep=KEEP, trials=trials, trial_pruner="none")
        run_trials(spec, evaluator, out=folder / "out")
        cached = sum(path.stat().st_size for path in folder.glob("cache/*/*")) / MIB
    print(json.dumps({"before": before, "peak": peak(), "references": cached}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", nargs="+", type=int, default=[64, 512])
    parser.add_argument("--trials", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON (always so)")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.trials)
        return
    found = {}
    for samples in options.samples:
        command = [sys.executable, __file__, "--child", str(samples)]
        command += ["--trials", str(options.trials)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[samples] = row = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{samples} samples: peak {row['peak']:.0f} MiB ({row['before']:.0f} before the "
            f"references), {row['references']:.0f} MiB of references on disk",
            flush=True,
        )
    few, many = found[min(found)], found[max(found)]
    finish(
        {
            "peak_mib": {str(samples): round(row["peak"], 1) for samples, row in found.items()},
            "references_mib": {str(s): round(row["references"], 1) for s, row in found.items()},
            "peak_ratio": round(many["peak"] / few["peak"], 4),
            "grown_share_of_references": round(
                (many["peak"] - few["peak"]) / (many["references"] - few["references"]), 4
            ),
        }
    )


if __name__ == "__main__":
    main()
