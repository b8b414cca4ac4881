"""What choosing tokens costs: each preset's scoring as a share of the unpruned prefill.

The mid-size random models of prefill.py (12 decoder layers, d=512, about 1,500 image tokens and 64
text tokens), from pixels to the last token's logits. Processor time of the one thread, so that
other work on the machine does not count. Timed inside real pruned
prefills: the tower's attention and the pictures' entropy (`tower`), the query row of a decoder
layer (`row`), and scores, keep index and restoring (`choose`). `random` is what any config pays.

    python benchmarks/scoring.py [--rounds 9] [--family llava_next|llava] [--keep 0.25]
    python benchmarks/scoring.py --rounds 2 --tiny      # that it runs
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from common import Clock, finish, interleave, mid_model

from prunetune.config import PruningConfig
from prunetune.presets import load_preset, preset_names
from prunetune.runtime import apply

LAYERS, TEXT = 12, 64


def build(family: str, tiny: bool) -> tuple[Any, dict[str, torch.Tensor], int]:
    """Return a model, the inputs of one prompt, and its number of image tokens."""
    model = mid_model(family, LAYERS, tiny=tiny)
    size = model.config.vision_config.image_size
    image = {"pixel_values": torch.randn(1, 3, size, size)}
    if family == "llava_next":
        image = {
            "pixel_values": torch.randn(1, 5, 3, size, size),
            "image_sizes": torch.tensor([[2 * size, 2 * size]]),
        }
    with torch.no_grad():
        n = len(model.get_image_features(**image, return_dict=True).pooler_output[0])
    parts = [torch.full((1, 4), 5), torch.full((1, n), 999), torch.randint(5, 900, (1, TEXT - 4))]
    return model, {"input_ids": torch.cat(parts, 1), **image}, n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--family", choices=["llava_next", "llava"], default="llava_next")
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--tiny", action="store_true", help="a small model: that it runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, inputs, tokens = build(arguments.family, arguments.tiny)
    spent: dict[str, list[dict[str, float]]] = defaultdict(list)

    def pruned(name: str, config: PruningConfig) -> None:
        clock = Clock()
        with clock.running(), apply(model, config):
            clock.timed("prefill", model)(**inputs, logits_to_keep=1)
        spent[name].append(dict(clock.seconds))

    def unpruned() -> None:
        clock = Clock()
        clock.timed("prefill", model)(**inputs, logits_to_keep=1)
        spent["unpruned"].append(dict(clock.seconds))

    cases: dict[str, Callable[[], Any]] = {"unpruned": unpruned}
    for name in preset_names():
        config, _ = load_preset(
            name, model_type=arguments.family, num_layers=LAYERS, keep=arguments.keep
        )
        cases[name] = lambda name=name, config=config: pruned(name, config)
    with torch.no_grad():
        interleave(cases, arguments.rounds)
    # The first run of each case was the warm-up.
    whole = statistics.median(run["prefill"] for run in spent.pop("unpruned")[1:])
    print(f"unpruned prefill {1e3 * whole:.0f} ms, {tokens} image tokens, {arguments.family}")
    print(f"{'':>10} {'tower':>8} {'row':>8} {'choose':>8} {'share':>8} {'prefill':>8}")
    result: dict[str, Any] = {"family": arguments.family, "image_tokens": tokens}
    for name in sorted(spent):
        parts = {
            part: statistics.median(run.get(part, 0.0) for run in spent[name][1:])
            for part in ("tower", "row", "choose", "prefill")
        }
        ratio = parts.pop("prefill") / whole
        share = sum(parts.values()) / whole
        shown = " ".join(f"{1e3 * seconds:>5.1f} ms" for seconds in parts.values())
        print(f"{name:>10} {shown} {100 * share:>7.2f}% {ratio:>7.3f}x")
        result[name] = {"share": share, "prefill_ratio": ratio, **parts}
    finish(result)


if __name__ == "__main__":
    main()
