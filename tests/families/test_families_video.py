"""Videos beside images: prompts of every mixture, for the families that take them."""

import inspect

import family_models
import pytest
import torch
from family_models import FAMILIES, IMAGE, VIDEO, each
from reference import alive_slots, measure, reference_logits, worst
from reference_models import make_batch, make_config, tiny
from test_runtime import TOLERANCE, check_counts
from test_runtime_generate import pruned
from test_runtime_turns import Chat

import prunetune
from prunetune.errors import UnsupportedModelError
from prunetune.families import FAMILIES as TABLE

VIDEOS = [name for name in FAMILIES if family_models.family(name).videos]
videos = pytest.mark.parametrize("family", each(*VIDEOS))
POOLED = pytest.mark.parametrize(
    "family", each("llava_next_video", "llava_onevision", "video_llava")
)


def test_families_that_take_videos():
    """What the table says and what is tested here are the same."""
    assert set(VIDEOS) == {n for n in TABLE if TABLE.get(n).video_encoder_method is not None}


def prompts(family):
    """Return videos only, a video before and behind an image, two videos, and one without."""
    spec = family_models.family(family)
    video = spec.videos[0]
    return ((3, video, 2), (1, video, 2, spec.image, 1), (spec.image, 1, video, video, 2), (4,))


@videos
@pytest.mark.parametrize("rows", [slice(0, 1), slice(0, 3), slice(0, 4)], ids=str)
def test_every_mixture_equals_masking(family, rows):
    model = tiny(family)
    batch = make_batch(model, prompts(family)[rows])
    config = make_config(model, [(0, 0.7, ("coverage",)), (2, 0.4, ("topv", "last_query"))])
    measured = measure(model, config, batch, steps=4)
    assert measured.prefill < TOLERANCE
    assert measured.decode < TOLERANCE
    assert measured.tokens_agree
    check_counts(measured.trace, batch, config)
    for slots, ids in zip(measured.trace.image_slots, batch.inputs["input_ids"], strict=True):
        assert torch.equal(slots, ((ids == IMAGE) | (ids == VIDEO)).nonzero().flatten())


@videos
@torch.no_grad()
def test_images_and_videos_over_the_turns(family):
    model, spec = tiny(family), family_models.family(family)
    config = make_config(model, "0+1+3" if not spec.refused_scorers else "2")
    chat = Chat(model, config)
    with prunetune.apply(model, config) as handle:
        chat.turn(handle, make_batch(model, ((2, spec.videos[0], 3),), seed=1))
        chat.turn(handle, make_batch(model, ((2, spec.image, 4),), seed=2))
        chat.turn(handle, make_batch(model, ((1, spec.videos[0], 1, spec.image, 2),), seed=3))
    assert len(chat.passes) == 3
    assert chat.gap() < TOLERANCE


@videos
@torch.no_grad()
def test_an_item_keeps_the_same_tokens_beside_others(family):
    """A video alone, and the same behind an image: captures are not mixed up."""
    model, spec = tiny(family), family_models.family(family)
    config = make_config(model, [(0, 0.4, ("random", "coverage"))])
    both = make_batch(model, ((2, spec.image, 3, spec.videos[0], 2),))
    alone = [spec.assemble(model, [[p, few_words()]]) for p in both.pieces[0] if p.count]
    with prunetune.apply(model, config) as handle:
        for batch in (both, *alone):
            model(**batch.inputs)
        together, *apart = [trace.stages[0].scores[0] for trace in handle.trace]
    assert [worst(a, b[0]) for a, b in zip(together, apart, strict=True)] == [0.0, 0.0]


def few_words():
    return family_models.Piece([5, 6])


@videos
def test_videos_without_a_cache(family):
    """No cache, for which old versions of transformers encode anew at every step."""
    model = tiny(family)
    batch, config = make_batch(model, prompts(family)), make_config(model, [(2, 0.4, ("random",))])
    with torch.no_grad():
        expected, _ = pruned(model, config, batch)
        output, _ = pruned(model, config, batch, use_cache=False)
    assert torch.equal(output.sequences, expected.sequences)


@POOLED
@torch.no_grad()
def test_video_placeholders_without_a_video_are_text(family):
    """A model may write its video placeholder; only given videos have tokens to prune."""
    model, spec = tiny(family), family_models.family(family)
    batch = make_batch(model, ((3, spec.image, 4),))
    batch.inputs["input_ids"][0, -2] = VIDEO
    with prunetune.apply(model, make_config(model, "2+4")) as handle:
        logits, trace = model(**batch.inputs).logits, handle.trace[-1]
    assert batch.length - 2 not in trace.image_slots[0]
    alive = alive_slots(tuple(batch.valid.shape), (0, trace))
    reference = reference_logits(model, batch, alive)
    assert worst(logits[:, -1], reference[:, -1]) < TOLERANCE


@videos
@torch.no_grad()
def test_video_features_computed_before_apply(family):
    model, spec = tiny(family), family_models.family(family)
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        pytest.skip("before transformers 5.18 forwards take no features")
    batch = make_batch(model, ((2, spec.videos[0], 3),))
    taken = inspect.signature(model.model.get_video_features).parameters
    inputs = {k: batch.inputs.pop(k) for k in list(batch.inputs) if k in taken}
    features = {"video": model.model.get_video_features(**inputs, return_dict=True)}
    grids = {k: v for k, v in inputs.items() if k == "video_grid_thw"}
    with (
        prunetune.apply(model, make_config(model)),
        pytest.raises(UnsupportedModelError, match=r"\A[^\n]*videos[^\n]*\Z"),
    ):
        model(**batch.inputs, **grids, mm_encoder_outputs=features)
