"""What scorers are given, against eager, full-length, masked runs that return everything."""

from typing import ClassVar

import family_models
import pytest
import torch
from reference import alive_slots, masked, worst
from reference_models import ROWS, THOROUGH, TILE, make_batch, make_config, tiny
from test_runtime_geometry import token_geometries
from test_runtime_turns import NEW, SIZES, Chat

import prunetune
from prunetune.scorers import Scorer

TOLERANCE = 1e-5


class Probe(Scorer):
    """Keeps what it is given, and scores by a hash of the patch's place."""

    needs: ClassVar[frozenset] = frozenset(
        {"vision_attention", "layer_states", "last_query", "image_seed"}
    )
    seen: ClassVar[list] = []
    name: str = "probe"

    def score(self, ctx):
        self.seen.append(ctx)
        return self.of(ctx.geometry, ctx.layer)

    @staticmethod
    def of(geometry, layer):
        place = geometry.tile * 64 + geometry.row * 8 + geometry.col
        return ((place + 7 * layer) * 37 % 101).float()


class Unqueried(Probe):
    """Asks for no attention of the language model, where it shows none."""

    needs: ClassVar[frozenset] = Probe.needs - {"last_query"}


def probe_of(family):
    refused = family_models.family(family).refused_scorers
    return Unqueried() if "last_query" in refused else Probe()


@pytest.fixture
def probe():
    Probe.seen.clear()
    return Probe()


def pruned(model, config, batch):
    with torch.no_grad(), prunetune.apply(model, config) as handle:
        model(**batch.inputs)
        return handle.trace[-1]


def patches_before(batch, geometries, trace, stage):
    """Return each row's and image's patch slots alive before a stage, in order of scoring."""
    out = []
    for row, slots in enumerate(trace.image_slots):
        alive = slots if stage == 0 else trace.stages[stage - 1].kept[row]
        first = 0
        for total, geometry in zip(batch.images[row], geometries[row], strict=True):
            own = slots[first : first + total]
            out.append((row, own[~geometry.separator & torch.isin(own, alive)]))
            first += total
    return out


@torch.no_grad()
def reference_states(plain, batch, alive, layer):
    """Return a decoder layer's input, second norm's output and head-mean attention."""
    got = {}
    spec = family_models.family(plain)
    module = spec.text_model(plain).layers[layer]
    hooks = [
        module.register_forward_pre_hook(
            lambda m, args, kwargs: got.update(source=args[0]), with_kwargs=True
        ),
        spec.second_norm(module).register_forward_hook(
            lambda m, args, output: got.update(target=output)
        ),
        module.self_attn.register_forward_hook(
            lambda m, args, output: got.update(attention=output[1].mean(1))
        ),
    ]
    with masked(plain, batch.valid, alive):
        plain(**batch.inputs, use_cache=False)
    for hook in hooks:
        hook.remove()
    return got


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layers", [(2,), (1, 3), (0, 2, 5)], ids=str)
@pytest.mark.parametrize("family", THOROUGH)
def test_scorers_see_the_layer_before_the_stage(family, layers, attention, probe):
    """Also after earlier stages, when tokens have moved up."""
    model, plain = tiny(family, attention), tiny(family, "eager")
    batch = make_batch(model)
    retention = {k: 0.8 - 0.2 * i for i, k in enumerate(layers)}
    config = make_config(model, [(k, retention[k], (probe,) if k else ("random",)) for k in layers])
    trace = pruned(model, config, batch)
    geometries = token_geometries(model, batch)
    seen = iter(probe.seen)
    alive = alive_slots(tuple(batch.valid.shape), (0, trace))
    for stage, layer in enumerate(layers):
        if layer == 0:
            continue
        expected = reference_states(plain, batch, alive, layer - 1)
        for (row, slots), context in zip(patches_before(batch, geometries, trace, stage), seen):
            assert context.layer == layer
            assert worst(context.source_states, expected["source"][row, slots]) < TOLERANCE
            assert worst(context.target_states, expected["target"][row, slots]) < TOLERANCE
            if "last_query" in probe.needs:
                expected_row = expected["attention"][row, -1, slots]
                assert worst(context.last_query, expected_row) < TOLERANCE
            scores = trace.stages[stage].scores[row]
            assert any(len(s) == len(slots) for s in scores)
    assert next(seen, None) is None


@pytest.mark.parametrize("family", THOROUGH)
@torch.no_grad()
def test_vision_attention_is_the_cls_row_of_the_feature_layer(family, probe):
    model, plain = tiny(family), tiny(family, "eager")
    batch = make_batch(model)
    config = make_config(model, [(1, 0.5, (probe,))])
    pruned(model, config, batch)
    pixels = batch.inputs["pixel_values"]
    crops = pixels if pixels.ndim == 5 else pixels[:, None]
    geometries = [g for row in token_geometries(model, batch) for g in row]
    for context, views, geometry in zip(probe.seen, crops, geometries, strict=True):
        # Three layers, features are hidden_states[-2]: the output of layer 1.
        weights = plain.model.vision_tower(views, output_attentions=True).attentions[1]
        row = weights.mean(1)[:, 0, 1:]
        patches = geometry.select((~geometry.separator).nonzero().flatten())
        side = TILE[family] // 4
        expected = row[patches.tile, patches.row * side + patches.col]
        assert worst(context.vision_attention, expected) < 1e-6
        assert torch.equal(context.geometry.tile, patches.tile)


@pytest.mark.parametrize("family", THOROUGH)
def test_the_image_seed_is_that_of_the_pixels(family, probe):
    """Same image, same seed, wherever it stands; another image, another seed."""
    model = tiny(family)
    config = make_config(model, [(1, 0.5, (probe,))])
    pruned(model, config, make_batch(model, seed=1))
    pruned(model, config, make_batch(model, tuple((7, *row) for row in ROWS[family]), seed=1))
    seeds = [context.image_seed for context in probe.seen]
    count = sum(not isinstance(item, int) for row in ROWS[family] for item in row)
    assert seeds[:count] == seeds[count:]
    assert len(set(seeds)) == count


@pytest.mark.parametrize("name", ["random", "topv", "last_query", "cls_attention", "coverage"])
def test_traced_scores_are_those_that_decided(name):
    """The kept patches of each image are those with the highest traced scores."""
    model = tiny("llava")
    batch, config = make_batch(model), make_config(model, [(2, 0.4, (name,)), (4, 0.2, ())])
    trace = pruned(model, config, batch)
    geometries = token_geometries(model, batch)
    for stage, done in enumerate(trace.stages):
        flat = [s for row in done.scores for s in row]
        for (row, slots), scores in zip(
            patches_before(batch, geometries, trace, stage), flat, strict=True
        ):
            kept = torch.isin(slots, done.kept[row])
            assert scores[kept].min() >= scores[~kept].max()
            assert stage or abs(scores.mean()) < 1e-5


@pytest.mark.parametrize("family", THOROUGH)
@torch.no_grad()
def test_a_new_image_is_scored_with_the_earlier_turns_in_sight(family, probe):
    """The last query's softmax runs over the cached tokens too, pruned as they are."""
    model, plain = tiny(family), tiny(family, "eager")
    config = make_config(model, [(1, 0.6, (probe,)), (3, 0.3, (probe,))])
    chat = Chat(model, config)
    with prunetune.apply(model, config) as handle:
        chat.turn(handle, make_batch(model, ((2, SIZES[family], 3),), seed=1))
        probe.seen.clear()
        second = make_batch(model, ((2, SIZES[family], 4),), seed=2)
        chat.turn(handle, second)
    whole = type(second)(
        chat.inputs | {k: chat.inputs[k][:, :-NEW] for k in ("input_ids", "attention_mask")}, [[]]
    )
    alive = alive_slots(tuple(whole.valid.shape), *chat.passes)
    offset, trace = chat.passes[1]
    contexts = iter(probe.seen)
    for stage, layer in enumerate((1, 3)):
        expected = reference_states(plain, whole, alive, layer - 1)
        [(_, slots)] = patches_before(second, token_geometries(model, second), trace, stage)
        context = next(contexts)
        assert worst(context.source_states, expected["source"][0, slots + offset]) < TOLERANCE
        assert worst(context.last_query, expected["attention"][0, -1, slots + offset]) < TOLERANCE
