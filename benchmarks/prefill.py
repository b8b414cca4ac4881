"""Prefill time, pruned against unpruned: is dropping tokens worth what the FLOPs promise?

12 decoder layers, d=512, about 1,500 image tokens and 64 text tokens, one thread; the language
model's prefill alone (image features are computed once, before). 90% of the image tokens go at
layer 2. `llava_next`: five views of 17 x 17 patches and 34 newlines (1,479 image tokens); `llava`:
one view of 39 x 39 (1,521), where `topv`, which compares every patch with every other of its view,
is dearest.

    python benchmarks/prefill.py [--rounds 9] [--family llava_next|llava]
    python benchmarks/prefill.py --rounds 1 --tiny      # that it runs
"""

import argparse
import statistics

import torch
from common import finish, interleave, mid_model, ratio

from prunetune.budget import ModelFacts, flops_ratio
from prunetune.config import ModelRef, PruningConfig, Stage
from prunetune.runtime import apply
from prunetune.scorers import SCORERS

LAYERS, LAYER, RETENTION, TEXT = 12, 2, 0.1, 64


def config(scorer: str, retention: float, family: str) -> PruningConfig:
    """One stage at layer 2."""
    stage = Stage(layer=LAYER, retention=retention, scorers=(SCORERS.get(scorer)(name=scorer),))
    return PruningConfig(model=ModelRef(model_type=family, num_layers=LAYERS), stages=(stage,))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--family", choices=["llava_next", "llava"], default="llava_next")
    parser.add_argument("--tiny", action="store_true", help="a small model: that it runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    family = arguments.family
    model = mid_model(family, LAYERS, tiny=arguments.tiny)
    size = model.config.vision_config.image_size
    if family == "llava_next":
        pixels = torch.randn(1, 5, 3, size, size)
        image = {"pixel_values": pixels, "image_sizes": torch.tensor([[2 * size, 2 * size]])}
    else:
        image = {"pixel_values": torch.randn(1, 3, size, size)}
    with torch.no_grad():
        n = len(model.get_image_features(**image, return_dict=True).pooler_output[0])
    ids = torch.cat(
        [torch.full((1, 4), 5), torch.full((1, n), 999), torch.randint(5, 900, (1, TEXT - 4))], 1
    )

    def prefill(pruning: PruningConfig | None):
        def plain() -> None:
            model(input_ids=ids, mm_encoder_outputs={"image": features}, logits_to_keep=1)

        def pruned() -> None:
            with apply(model, pruning):
                model(input_ids=ids, mm_encoder_outputs={"image": captured}, logits_to_keep=1)

        with torch.no_grad():
            if pruning is None:
                features = model.get_image_features(**image, return_dict=True)
                return plain
            with apply(model, pruning):
                captured = model.get_image_features(**image, return_dict=True)
            return pruned

    cases = {
        "unpruned": prefill(None),
        "keep all": prefill(config("coverage", 1.0, family)),
        "coverage": prefill(config("coverage", RETENTION, family)),
        "last_query": prefill(config("last_query", RETENTION, family)),
        "topv": prefill(config("topv", RETENTION, family)),
    }
    with torch.no_grad():
        seconds = interleave(cases, arguments.rounds)
    text = model.config.text_config
    facts = ModelFacts(
        family, LAYERS, text.hidden_size, text.intermediate_size, 8, 8, text.head_dim, n, TEXT
    )
    ideal = flops_ratio(config("coverage", RETENTION, family).stages, facts)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    for name in cases:
        print(f"{name:>12}: {1e3 * median[name]:8.1f} ms   {ratio(seconds, name, 'unpruned'):.3f}x")
    saving = median["unpruned"] - median["coverage"]
    scoring = statistics.median(a - b for a, b in zip(seconds["topv"], seconds["coverage"]))
    result = {
        "ideal_flop_ratio": ideal,
        "measured_ratio": ratio(seconds, "coverage", "unpruned"),
        "over_ideal": ratio(seconds, "coverage", "unpruned") / ideal,
        "keep_all_overhead": ratio(seconds, "keep all", "unpruned") - 1,
        "topv_scoring_share_of_saving": scoring / saving,
        "topv_ratio": ratio(seconds, "topv", "unpruned"),
        "rounds": arguments.rounds,
        "image_tokens": n,
        "family": family,
    }
    print(f"ideal FLOP ratio {ideal:.3f}, measured {result['over_ideal']:.3f}x of it")
    print(f"topv scoring {1e3 * scoring:.1f} ms: {100 * scoring / saving:.2f}% of what is saved")
    finish(result)


if __name__ == "__main__":
    main()
