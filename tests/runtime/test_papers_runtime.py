"""VFlowOpt and packed positions end to end; every scorer in a batch; towers without CLS."""

import copy

import by_hand
import numpy as np
import pytest
import torch
from family_models import family as spec
from reference import alive_slots, reference_logits, worst
from reference_models import (
    IMAGE,
    LAYERS,
    THOROUGH,
    VOCAB,
    Batch,
    make_batch,
    make_config,
    tiny,
)
from test_runtime_geometry import token_geometries
from test_runtime_turns import SIZES, Chat
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

import prunetune
from prunetune.errors import ConfigError
from prunetune.families.base_configs import CLIP_PIXELS
from prunetune.presets import load_preset
from prunetune.scorers import SCORERS

torch.set_num_threads(1)
TOLERANCE = 1e-5
THRESHOLD, ALPHA, SIZE, RETENTION = 1.1, 0.4, 2.3, 0.45


def vflowopt(model, positions="packed"):
    scorer = {"name": "context_entropy", "threshold": THRESHOLD, "alpha": ALPHA}
    restorer = {"name": "grid_recycling", "size": SIZE}
    return make_config(
        model, [(0, RETENTION, (scorer,), restorer), (3, 0.25, ())], positions=positions
    )


@torch.no_grad()
def plain_importance(model, batch):
    """Return each image's importance, ``[its patches]``, from the whole maps of an eager tower."""
    tower = copy.deepcopy(model).model.vision_tower
    tower.set_attn_implementation("eager")
    pixels = batch.inputs["pixel_values"]
    crops = pixels if pixels.ndim == 5 else pixels[:, None]
    geometries = [g for row in token_geometries(model, batch) for g in row]
    mean, std = (np.array(s).reshape(3, 1, 1) for s in CLIP_PIXELS)
    found = []
    for views, geometry in zip(crops, geometries, strict=True):
        weights = tower(views, output_attentions=True).attentions[1]
        scores = []
        for view, attention in zip(views, weights.mean(1), strict=True):
            raw = (view.double().numpy() * std + mean).clip(0, 1).mean(0)
            bits = torch.tensor(by_hand.entropy((raw * 255).round().astype(int), 4))
            scores.append(by_hand.importance(attention[1:, 1:], bits, THRESHOLD, ALPHA))
        patch = geometry.select((~geometry.separator).nonzero().flatten())
        found.append([scores[t][i] for t, i in zip(patch.tile.tolist(), patch.inside.tolist())])
    return found, geometries


class ByHand:
    """What VFlowOpt does to one forward: kept slots at both stages, and the new states."""

    def __init__(self, model, batch, offset=0):
        self.kept, self.later, self.means = [], [], []
        scores, geometries = plain_importance(model, batch)
        flat = iter(zip(scores, geometries, strict=True))
        for row, ids in enumerate(batch.inputs["input_ids"]):
            slots, first = (ids == IMAGE).nonzero().flatten(), 0
            for total in batch.images[row]:
                self.add(row, slots[first : first + total], *next(flat), offset)
                first += total

    def add(self, row, slots, scores, geometry, offset):
        separators = slots[geometry.separator]
        patches = slots[~geometry.separator]
        count = int(RETENTION * len(slots) + 0.5)
        newlines = min(len(separators), count // 2)
        kept, heads = by_hand.recycle(scores, count - newlines, by_hand.places(geometry), SIZE)
        assert len(heads) > 1
        self.kept.append((row, patches[kept]))
        self.means.append((row, patches + offset, heads, [max(s, 1e-6) for s in scores]))
        left = int(0.25 * len(slots) + 0.5)
        left -= min(newlines, left // 2)
        best = sorted(kept, key=lambda i: (-scores[i], i))[:left]
        self.later.append((row, patches[sorted(best)]))

    def rewrite(self, states):
        states = states.clone()
        for row, slots, heads, mass in self.means:
            states[row, slots] = by_hand.blended(states[row, slots], heads, mass)
        return states


@pytest.mark.parametrize("positions", ["packed", "original"])
@pytest.mark.parametrize("family", THOROUGH)
@torch.no_grad()
def test_vflowopt_equals_a_full_length_run_with_everything_by_hand(family, positions):
    """Scores, cells, means, counts, the later stage, renumbered positions: prefill and decode."""
    model, plain = tiny(family), tiny(family)
    batch, config = make_batch(model), vflowopt(model, positions)
    hand = ByHand(plain, batch)
    with prunetune.apply(model, config) as handle:
        logits = model(**batch.inputs).logits
        trace = handle.trace[-1]
        generated = model.generate(
            **batch.inputs, max_new_tokens=5, do_sample=False,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    for stage, expected in zip(trace.stages, (hand.kept, hand.later), strict=True):
        for row, slots in expected:
            assert torch.isin(slots, stage.kept[row]).all()
    alive = alive_slots(tuple(batch.valid.shape), (0, trace))
    tokens = generated.sequences[:, batch.length :]
    options = {"packed": positions == "packed", "rewrite": {0: hand.rewrite}}
    reference = reference_logits(plain, batch, alive, tokens, **options)
    survives = batch.valid & alive[-1]
    assert worst(logits[survives], reference[:, : batch.length][survives]) < TOLERANCE
    decoded = reference[:, batch.length - 1 : -1]
    assert worst(torch.stack(generated.logits, 1), decoded) < TOLERANCE
    for wrong in ({"packed": positions != "packed"}, {"rewrite": None}):
        other = reference_logits(plain, batch, alive, tokens, **(options | wrong))
        assert worst(decoded, other[:, batch.length - 1 : -1]) > 1e-3


@pytest.mark.parametrize("family", THOROUGH)
@torch.no_grad()
def test_packed_positions_through_several_turns(family):
    """Two turns with an image each and one of text: positions go on where the kept tokens end."""
    model, size = tiny(family), SIZES[family]
    config, chat = vflowopt(model), Chat(model, vflowopt(model))
    hands = []
    with prunetune.apply(model, config) as handle:
        for seed, row in ((1, (2, size, 3)), (2, (4, size, 2)), (3, (3,))):
            batch = make_batch(model, (row,), seed=seed)
            past = 0 if chat.inputs is None else chat.inputs["input_ids"].shape[1]
            chat.turn(handle, batch)
            if batch.images[0]:
                hands.append(ByHand(chat.plain, batch, past))
    kept = [trace.stages[0].kept[0] + offset for offset, trace in chat.passes]
    for hand, alive in zip(hands, kept, strict=True):
        [(_, slots, heads, _)] = hand.means
        assert torch.isin(slots[list(heads)], alive).all()

    def rewrite(states):
        for hand in hands:
            states = hand.rewrite(states)
        return states

    assert chat.gap(packed=True, rewrite={0: rewrite}) < TOLERANCE
    assert chat.gap(packed=False, rewrite={0: rewrite}) > 1e-3
    assert chat.gap(packed=True) > 1e-3


def test_packed_positions_are_refused_where_they_have_no_meaning():
    model = tiny("llava")
    with pytest.raises(ValueError, match=r"positions: 'packed' renumbers after a layer-0 stage"):
        make_config(model, "2", positions="packed")
    config = make_config(model, "0", positions="packed")
    prunetune.apply(model, config).remove()
    model.config.text_config.rope_parameters["mrope_section"] = [2, 3, 3]
    with pytest.raises(ConfigError, match=r"positions: received 'packed', .* multimodal rotary"):
        prunetune.apply(model, config)
    prunetune.apply(model, make_config(model, "0")).remove()


# -- every scorer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", THOROUGH)
@pytest.mark.parametrize("name", SCORERS)
@torch.no_grad()
def test_a_sample_alone_and_in_a_batch_keeps_the_same_tokens(name, family):
    """Through the runtime, ragged and padded, at layer 0 where the scorer can be used there."""
    model, kind = tiny(family), SCORERS.get(name)
    layer = 0 if kind().usable_at(0) else 2
    batch, config = (
        make_batch(model),
        make_config(model, [(layer, 0.4, (name,)), (4, 0.2, (name,))]),
    )
    with prunetune.apply(model, config) as handle:
        model(**batch.inputs)
        whole = handle.trace[-1]
        for row, pieces in enumerate(batch.pieces):
            alone = spec(family).assemble(model, [pieces])
            model(**alone.inputs)
            for one, all_ in zip(handle.trace[-1].stages, whole.stages, strict=True):
                assert torch.equal(one.kept[0] + batch.length - alone.length, all_.kept[row])
    if name not in ("coverage", "tile_prior"):
        other = Batch(dict(batch.inputs, pixel_values=batch.inputs["pixel_values"].flip(-1)), [])
        with prunetune.apply(model, config) as handle:
            model(**other.inputs)
        changed = zip(handle.trace[-1].stages[0].kept, whole.stages[0].kept)
        assert any(not torch.equal(one, two) for one, two in changed)


# -- towers without CLS ----------------------------------------------------------------------------


def siglip():
    torch.manual_seed(3)
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        image_size=20, patch_size=4, vision_use_head=False,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE,
        vision_feature_select_strategy="full", vision_feature_layer=-2,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "vision" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("name", ["cls_attention", "context_entropy"])
@torch.no_grad()
def test_a_tower_without_cls_gives_the_mean_attention_received(name):
    model = siglip()
    pixels = torch.randn(1, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": torch.tensor([[3] + [IMAGE] * 25 + [4, 5]]), "pixel_values": pixels}
    scorer = {"name": name} | ({"threshold": 0.0} if name == "context_entropy" else {})
    with prunetune.apply(model, make_config(model, [(0, 0.4, (scorer,))], "drop")) as handle:
        model(**inputs)
        stage = handle.trace[-1].stages[0]
    tower = copy.deepcopy(model.model.vision_tower)
    tower.set_attn_implementation("eager")
    attention = tower(pixels, output_attentions=True).attentions[1].mean(1)[0]
    received, row = attention.mean(0), attention[0]
    best = [set((v.argsort(descending=True)[:10] + 1).tolist()) for v in (received, row)]
    assert set(stage.kept[0].tolist()) == best[0]
    assert best[0] != best[1], "the first patch's row would do as well: the test proves nothing"


@pytest.mark.parametrize("name", ["fastervlm", "vflowopt", "topv"])
@torch.no_grad()
def test_presets_run_on_a_tower_without_cls(name):
    model = siglip()
    config, _ = load_preset(name, model_type="llava", num_layers=LAYERS, keep=0.4)
    ids = torch.tensor([[3] + [IMAGE] * 25 + [4, 5]])
    with prunetune.apply(model, config) as handle:
        output = model(input_ids=ids, pixel_values=torch.randn(1, 3, 20, 20))
    assert torch.isfinite(output.logits[:, -1]).all()
    assert handle.trace[-1].stages[-1].after == [int(25 * config.stages[-1].retention + 0.5)]
