"""Every scorer, other towers' settings, other number types, and random configs and batches."""

import random

import family_models
import pytest
import torch
from reference import measure, new_cache
from reference_models import (
    LAYERS,
    THOROUGH,
    available,
    make_batch,
    make_config,
    predicted_kv,
    tiny,
)
from test_runtime import TOLERANCE, check, check_counts

import prunetune
from prunetune.scorers import SCORERS

SIZES = {
    "llava": [(20, 20)],
    "llava_next": [(20, 32), (20, 60), (33, 12), (90, 31), (13, 64)],
}


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("family", THOROUGH)
def test_every_scorer(family, name):
    model = tiny(family)
    batch = make_batch(model)
    first = 0 if SCORERS.get(name)().usable_at(0) else 1
    config = make_config(model, [(first, 0.5, (name,)), (3, 0.2, (name,))])
    measured = measure(model, config, batch, steps=3)
    check(measured, batch, config)
    check_counts(measured.trace, batch, config)


@pytest.mark.parametrize("layers", [-1, 2, [-2, -1]], ids=str)
@pytest.mark.parametrize("family", THOROUGH)
def test_other_feature_layers(family, layers):
    """Another layer's, or several layers', features: the attention read is that of the last."""
    model = tiny(family)
    model.config.vision_feature_layer = layers
    if isinstance(layers, list):
        wide = torch.nn.Linear(64, 64)
        torch.nn.init.normal_(wide.weight, std=0.2)
        model.model.multi_modal_projector.linear_1 = wide
    batch, config = make_batch(model), make_config(model, [(0, 0.4, ("cls_attention",))])
    check(measure(model, config, batch, steps=2), batch, config)


@pytest.mark.parametrize("separators", ["keep", "drop"])
def test_the_cls_token_as_an_image_token(separators):
    """With the ``full`` strategy the tower's CLS token enters the language model: a separator."""
    model = tiny("llava")
    batch = make_batch(model, ((3, (20, 20), 4), (1, (20, 20), 2, (20, 20), 3)))
    ids, mask = [], []
    for row in batch.inputs["input_ids"].tolist():
        longer = [t for i, t in enumerate(row) for t in ([99] if _starts(row, i) else []) + [t]]
        ids.append(longer)
    width = max(map(len, ids))
    mask = [[0] * (width - len(r) + r.count(0)) + [1] * (len(r) - r.count(0)) for r in ids]
    ids = [[0] * (width - len(r)) + r for r in ids]
    inputs = batch.inputs | {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    batch = type(batch)(inputs, [[26], [26, 26]])
    model.config.vision_feature_select_strategy = "full"
    config = make_config(model, [(0, 0.5, ("cls_attention",)), (2, 0.3, ())], separators)
    measured = measure(model, config, batch, steps=3)
    check(measured, batch, config)
    slots, kept = measured.trace.image_slots[0], measured.trace.stages[-1].kept[0]
    assert (slots[0] in kept.tolist()) == (separators == "keep")


def _starts(row, i):
    return row[i] == 99 and (i == 0 or row[i - 1] != 99)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", THOROUGH)
@torch.no_grad()
def test_half_precision(family, dtype):
    model = tiny(family).to(dtype)
    batch = make_batch(model)
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.inputs.items()}
    stages = [
        (0, 0.7, ("cls_attention", "random")),
        (2, 0.4, ("topv", "last_query"), {"name": "grid_recycling", "size": 2}),
    ]
    config = make_config(model, available(stages, family_models.family(family)))
    with prunetune.apply(model, config) as handle:
        output = model(**inputs, use_cache=True, **new_cache(model))
        model.generate(**inputs, max_new_tokens=3)
    check_counts(handle.trace[-1], batch, config)
    assert output.logits.dtype == dtype
    assert output.logits.isfinite().all()
    keys = [one.keys for one in output.past_key_values.layers if hasattr(one, "keys")]
    assert keys[-1].shape[-2] == predicted_kv(batch, config)[-1]


def drawn(seed):
    """Return a random model, batch and config; None where the config is refused."""
    draw = random.Random(seed)
    family = draw.choice(THOROUGH)
    model = tiny(family, draw.choice(["sdpa", "eager"]))
    rows = []
    for _ in range(draw.randint(1, 4)):
        row = [draw.randint(1, 6)]
        for _ in range(draw.randint(0, 3)):
            row += [draw.choice(SIZES[family])] + [draw.randint(1, 6)] * (draw.random() < 0.7)
        rows.append((*row, draw.randint(1, 6)))
    rows.append((2, SIZES[family][0], 3))
    layers = sorted(draw.sample(range(LAYERS), draw.randint(1, 4)))
    retentions = sorted((draw.uniform(0.02, 1) for _ in layers), reverse=True)
    stages = []
    for layer, retention in zip(layers, retentions, strict=True):
        usable = [n for n in SCORERS if SCORERS.get(n)().usable_at(layer)]
        names = draw.sample(usable, draw.randint(1, 3)) if not stages or draw.random() < 0.7 else []
        scorers = [{"name": n, "weight": draw.uniform(-1, 1)} for n in names]
        for scorer in scorers:
            may = SCORERS.get(scorer["name"]).model_fields["per_crop"].annotation is bool
            scorer["per_crop"] = may and draw.random() < 0.3
        stages.append((layer, retention, scorers))
    positions = "packed" if layers[0] == 0 and draw.random() < 0.5 else "original"
    config = make_config(model, stages, draw.choice(["keep", "drop"]), positions)
    return model, make_batch(model, rows, seed), config


@pytest.mark.parametrize("seed", range(12))
def test_drawn_at_random(seed):
    model, batch, config = drawn(seed)
    measured = measure(model, config, batch, steps=3)
    check_counts(measured.trace, batch, config)
    assert measured.worst < 2 * TOLERANCE
    assert measured.kv == predicted_kv(batch, config)
