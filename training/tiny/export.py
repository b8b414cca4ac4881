"""Writes a checkpoint as a model folder that transformers loads: fp16 weights and processor.

    python -m training.tiny.export runs/tiny/checkpoint.safetensors --out prunetune/embedded/tiny

The model card is written from measurements: `--card SHIPPED OTHER` names two files whose last
line is what `evaluate --json` printed, for the exported weights and for others to compare with;
`--busy-card` names two more, of busy pictures.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import torch
from transformers.utils import logging

from training.tiny.card import card
from training.tiny.model import Heads, build, load_start, processor


def export(checkpoint: Path, out: Path) -> None:
    """Writes weights, configs, tokenizer and processor; each file appears whole or not at all."""
    model = build()
    missing = [name for name in load_start(checkpoint, model, Heads()) if "aux." not in name]
    if missing:
        raise ValueError(f"{checkpoint} lacks the weights {missing}")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as beside:
        model.to(torch.float16).save_pretrained(beside)
        processor().save_pretrained(beside)
        for written in Path(beside).iterdir():
            written.chmod(0o644)
            os.replace(written, out / written.name)


def evaluation(path: Path) -> dict:
    """What `evaluate --json` printed last."""
    found: dict = json.loads(path.read_text().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, default=Path("prunetune/embedded/tiny"))
    parser.add_argument("--card", type=Path, nargs=2, help="evaluations to write README.md from")
    parser.add_argument("--busy-card", type=Path, nargs=2, help="the same of busy pictures")
    parser.add_argument(
        "--notes", type=Path, help="JSON of texts for the card: columns, agreement, trained, limits"
    )
    args = parser.parse_args()
    logging.set_verbosity_error()
    export(args.checkpoint, args.out)
    size = (args.out / "model.safetensors").stat().st_size / 2**20
    if args.card:
        named = {"plain": args.card, "busy": args.busy_card}
        found = {kind: tuple(map(evaluation, paths)) for kind, paths in named.items() if paths}
        text = card(found, size, json.loads(args.notes.read_text()))
        (args.out / "README.md").write_text(text, encoding="utf-8")
    print(f"{args.out}: {size:.1f} MiB of weights")


if __name__ == "__main__":
    main()
