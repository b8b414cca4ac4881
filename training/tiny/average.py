"""Averages models that were trained on from one another, weight by weight.

    python -m training.tiny.average 0.25 given/ 0.75 later/ --out start.safetensors

Weights along one run lie in one valley, and between them the loss is often lower than at either end
(Wortsman et al. 2022, "Model soups", arXiv:2203.05482; Izmailov et al. 2018, arXiv:1803.05407).
A source is a folder of an exported model, or a checkpoint. `--heads` names a checkpoint whose
training heads the result takes over, so that training can go on from there.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlavaNextForConditionalGeneration
from transformers.utils import logging

from prunetune.files import appearing


def read(source: Path) -> dict[str, Tensor]:
    """fp32 weights by parameter name, training heads among them where the source has any."""
    if source.is_dir():
        model = LlavaNextForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
        return {name: weight.detach() for name, weight in model.named_parameters()}
    return {name: w for name, w in load_file(source).items() if "/" not in name}


def average(sources: Iterable[tuple[float, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """Weighted mean of weights that all sources have.

    Raises:
        ValueError: The shares do not add up to 1.
    """
    parts = list(sources)
    if abs(sum(share for share, _ in parts) - 1) > 1e-6:
        raise ValueError(f"shares {[share for share, _ in parts]} do not add up to 1")
    names = set.intersection(*(set(weights) for _, weights in parts))
    return {
        name: sum((share * weights[name] for share, weights in parts), torch.zeros(()))
        for name in sorted(names)
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", nargs="+", metavar="SHARE SOURCE")
    parser.add_argument("--heads", type=Path, help="checkpoint to take training heads from")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    logging.set_verbosity_error()
    pairs = zip(args.sources[::2], args.sources[1::2], strict=True)
    weights = average((float(share), read(Path(source))) for share, source in pairs)
    if args.heads:
        heads = {n: w for n, w in load_file(args.heads).items() if n.startswith("aux.")}
        weights = {**heads, **{n: w for n, w in weights.items() if not n.startswith("aux.")}}
    with appearing(args.out) as beside:
        save_file({name: weight.contiguous() for name, weight in weights.items()}, beside)


if __name__ == "__main__":
    main()
