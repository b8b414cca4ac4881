"""Trains `tiny` on pictures drawn on the way.

One command starts two single-threaded processes:

    python -m training.tiny.train --start START.safetensors --run runs/tiny --minutes 80 --compile

With `--resume` it goes on where an interruption left it, or begins where there is nothing yet: the
same command for both. Batches depend on the seed and the step only, so there is no random state to
save beside weights, moments and progress. `--steps` makes the rate follow the steps, not the clock:
for a run that only takes what others leave of the machine.
"""

import argparse
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from training.tiny.batches import SIZE_SHARES, SIZES, make_batch
from training.tiny.fast import Forward
from training.tiny.kinds import KINDS, SEEDS
from training.tiny.losses import seen_loss, step_loss
from training.tiny.model import Heads, build, load_start, parameters
from training.tiny.optimiser import Optimiser
from training.tiny.questions import ALL_TYPES

SHARES = {
    "color": 1.2,
    "shape": 0.7,
    "digit": 2.4,
    "count": 2.2,
    "where": 0.6,
    "relation": 1.5,
    "exists": 0.7,
    "by_digit": 1.2,
    "list": 4.5,
    "name": 1.4,
    "background": 1.0,
}
# large blocks stay with the process instead of going back to the system after each step
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
}
LOG_EVERY = 25


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--start", type=Path, help="fp32 safetensors to continue from")
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoint and log")
    parser.add_argument("--resume", action="store_true", help="go on where --run has a checkpoint")
    parser.add_argument("--minutes", type=float, default=70, help="wall clock of the schedule")
    parser.add_argument("--steps", type=int, help="length of the schedule, instead of --minutes")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=8, help="pictures a step and process")
    parser.add_argument(
        "--looks", type=int, default=0, help="busy pictures besides that only the tower sees"
    )
    parser.add_argument("--busy", type=float, default=0.0, help="share of pictures of that kind")
    parser.add_argument("--rate", type=float, default=7e-4, help="highest learning rate")
    parser.add_argument("--last", type=float, default=0.03, help="share of it at the end")
    parser.add_argument("--slow", type=float, default=0.3, help="its factor for the vision tower")
    parser.add_argument("--warm", type=int, default=100, help="steps of linear warm-up")
    parser.add_argument(
        "--keep", type=int, default=0, help="visual tokens shown to the decoder (0: all), for speed"
    )
    parser.add_argument(
        "--average", type=float, default=0.0, help="decay of a running average (0: none)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=100, help="steps")
    parser.add_argument("--save-minutes", type=float, default=4, help="at most, between two saves")
    parser.add_argument("--max-steps", type=int, default=10**9)
    parser.add_argument("--compile", action="store_true", help="torch.compile the layers")
    parser.add_argument(
        "--pause-file", type=Path, help="sleep before a step for as long as this file exists"
    )
    return parser.parse_args()


def launch(processes: int) -> int:
    """Starts this command once a process; returns 0 if all end well, else the highest status.

    One that a signal ended counts with 128 and the signal's number, as in a shell. Whoever ends it
    ends them: left alone they would go on, and save beside a later run.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    meeting = Path(f"/tmp/prunetune-train-{os.getpid()}")
    children = []
    for rank in range(processes):
        shared = {"RANK": str(rank), "WORLD_SIZE": str(processes), "MEETING": str(meeting)}
        command = [sys.executable, "-m", "training.tiny.train", *sys.argv[1:]]
        children.append(subprocess.Popen(command, env={**os.environ, **ALLOCATOR, **shared}))
    try:
        ended = [child.wait() for child in children]
        return max(status if status >= 0 else 128 - status for status in ended)
    finally:
        for child in children:
            child.terminate()
        meeting.unlink(missing_ok=True)


class Log:
    """Sums up what happened since the last line."""

    def __init__(self) -> None:
        self.parts: list[dict[str, float]] = []
        self.right, self.asked = np.zeros(len(ALL_TYPES)), np.zeros(len(ALL_TYPES))

    def add(self, parts: dict[str, float], outcome: torch.Tensor) -> None:
        """Takes in one step's losses and (right, type) of its answer words."""
        right, kind = outcome.numpy()
        kept = kind >= 0
        self.parts.append(parts)
        self.right += np.bincount(kind[kept], right[kept], minlength=len(ALL_TYPES))
        self.asked += np.bincount(kind[kept], minlength=len(ALL_TYPES))

    def line(self) -> str:
        """Mean losses and accuracy by type."""
        losses = {k: np.mean([p[k] for p in self.parts]) for k in self.parts[0]}
        shares = self.right / np.maximum(self.asked, 1)
        return " ".join(
            [
                *(f"{name} {value:.3f}" for name, value in losses.items()),
                "|",
                *(f"{name} {share:.3f}" for name, share in zip(ALL_TYPES, shares, strict=True)),
            ]
        )


def shares_of(types: tuple[str, ...]) -> np.ndarray:
    """How often training asks each type, adding up to 1."""
    shares = np.array([SHARES[kind] for kind in types])
    return shares / shares.sum()


def kinds_of_step(seed: list[int], pictures: int, busy: float) -> list[str]:
    """The kind of each picture of a step; the share that is busy holds on average."""
    chance = np.random.default_rng([*seed, 1]).random(pictures)
    return ["busy" if busy > c else "plain" for c in chance]


def elapsed_everywhere(elapsed: float) -> float:
    """The first process's clock, so that all stop at the same step."""
    if not dist.is_initialized():
        return elapsed
    clock = torch.tensor([elapsed], dtype=torch.float64)
    dist.broadcast(clock, 0)
    return float(clock)


def train(args: argparse.Namespace, rank: int) -> None:
    """The loop of one process."""
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    model, heads = build(), Heads()
    named = parameters(model, heads)
    checkpoint = args.run / "checkpoint.safetensors"
    going_on = args.resume and checkpoint.exists()
    if args.start and not going_on:
        missing = load_start(args.start, model, heads)
        print(f"weights not in {args.start.name}: {missing}", flush=True)
    optimiser = Optimiser(named, args.rate, args.slow, args.average)
    model.bfloat16()
    heads.bfloat16()
    progress = {"step": 0, "seconds": 0.0}
    if going_on:
        progress = optimiser.load(checkpoint)
    optimiser.push()
    forward, log, began = Forward(model, args.compile), Log(), time.monotonic()
    began -= progress["seconds"]
    shares = {name: shares_of(kind.types) for name, kind in KINDS.items()}
    step, saved = int(progress["step"]), time.monotonic()
    while step < args.max_steps:
        while args.pause_file and args.pause_file.exists():
            time.sleep(1)
        seconds = elapsed_everywhere(time.monotonic() - began)
        done = step / args.steps if args.steps else seconds / (60 * args.minutes)
        if done >= 1:
            break
        common = np.random.default_rng([SEEDS["training"], args.seed, step])
        size = SIZES[int(common.choice(len(SIZES), p=SIZE_SHARES))]
        seed = [SEEDS["training"], args.seed, step, 1 + rank]
        kinds = kinds_of_step(seed, args.pictures, args.busy)
        batch = make_batch(seed, size, kinds, shares, args.keep)
        loss, parts, outcome = step_loss(forward, model.lm_head, heads, batch)
        loss.backward()
        if args.looks:
            more = make_batch([*seed, 2], size, ["busy"] * args.looks, shares)
            seen_loss(forward, heads, more).backward()
        falling = args.last + (1 - args.last) * (1 + math.cos(math.pi * done)) / 2
        norm = optimiser.step(min(1.0, (step + 1) / args.warm) * falling)
        log.add(parts, outcome)
        step += 1
        if rank == 0 and step % LOG_EVERY == 0:
            print(f"{seconds:.0f}s step {step} {log.line()} | norm {norm:.2f}", flush=True)
            log = Log()
        due = step % args.save_every == 0 or time.monotonic() - saved > 60 * args.save_minutes
        if rank == 0 and due:
            optimiser.save(checkpoint, {"step": step, "seconds": time.monotonic() - began})
            saved = time.monotonic()
    if rank == 0:
        optimiser.save(checkpoint, {"step": step, "seconds": time.monotonic() - began})
        print(f"saved after {step} steps", flush=True)


def main() -> int:
    args = arguments()
    args.run.mkdir(parents=True, exist_ok=True)
    if "RANK" not in os.environ and args.processes > 1:
        return launch(args.processes)
    rank = int(os.environ.get("RANK", "0"))
    if args.processes > 1:
        meeting = f"file://{os.environ['MEETING']}"
        dist.init_process_group(
            "gloo", init_method=meeting, rank=rank, world_size=int(os.environ["WORLD_SIZE"])
        )
    train(args, rank)
    return 0


if __name__ == "__main__":
    sys.exit(main())
