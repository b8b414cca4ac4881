"""Mass under FlashAttention: wider heads instead of an additive mask, exactly."""

import family_models
import pytest
import torch
from reference import worst
from reference_models import make_batch, tiny
from test_runtime_generate import flash_model, logits_of, pruned
from test_runtime_mass import heavy
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers import DynamicCache

import prunetune
from prunetune.errors import UnsupportedModelError
from prunetune.families import FAMILIES as TABLE
from prunetune.families import Family
from prunetune.release import KEY_BIAS, cache_argument
from prunetune.runtime import frame
from prunetune.runtime.layers import widened
from prunetune.runtime.layers.widened import WIDEST, KeyBias

__all__ = ["flash_model"]  # a fixture
# Images of others see ahead, which FlashAttention cannot do: sdpa is no reference for it. And
# hybrid models have no mass.
WEIGHED = [
    n
    for n in family_models.FAMILIES
    if TABLE.get(n).blocks is Family.blocks and not family_models.family(n).hybrid
]
TOLERANCE = 2e-5


# -- the algebra -------------------------------------------------------------------------------


def heads(width, dtype=torch.float32):
    dice = torch.Generator().manual_seed(width)
    shapes = ((2, 4, 9, width), (2, 2, 30, width), (2, 2, 30, width))
    query, key, value = (torch.randn(s, generator=dice).to(dtype) for s in shapes)
    counts = torch.randint(1, 400, (2, 30), generator=dice).float()
    return query, key, value, counts.log()


def by_mask(query, key, value, bias, scale):
    mask = bias[:, None, None].to(query.dtype)
    return sdpa(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)


def by_width(query, key, value, bias, scale):
    wide = widened.widened(query, key, value, bias, scale)
    assert all(t.shape[-1] % 8 == 0 for t in wide)
    return sdpa(*wide, scale=scale, enable_gqa=True)[..., : value.shape[-1]]


@pytest.mark.parametrize("width", [16, 64, 80, 96, 128])
def test_wider_heads_equal_an_additive_mask(width):
    for scale in (width**-0.5, 1.0, 0.0917):
        given = heads(width)
        assert worst(by_width(*given, scale), by_mask(*given, scale)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_no_worse_than_by_a_mask(dtype, monkeypatch):
    def error(attend):
        *given, bias = heads(128, dtype)
        exact = by_mask(*(t.double() for t in given), bias.double(), 128**-0.5)
        return (attend(*given, bias, 128**-0.5).double() - exact).abs().mean()

    masked, wide = error(by_mask), error(by_width)
    assert wide < 1.05 * masked
    if dtype == torch.bfloat16:
        # With one part of the bias only, it would be as coarse as a mask of its dtype.
        monkeypatch.setattr(widened.torch, "stack", _first)
        assert error(by_width) > 1.02 * wide


def _first(parts, at, real=torch.stack):
    return real([parts[0], 0 * parts[1]], at)


# -- in a model --------------------------------------------------------------------------------


def compared(family, schedule, flash_model, rows=None, **options):
    """Return how far prefill and decoding are from those under sdpa."""
    model, plain = flash_model(family), tiny(family)
    size = family_models.family(family).image
    batch = make_batch(plain, ((2, size, 3),) if rows == "one" else None)
    config = heavy(plain, schedule)
    expected, first = pruned(plain, config, batch, **options)
    output, second = pruned(model, config, batch, **options)
    for one, two in zip(first.stages, second.stages, strict=True):
        assert all(map(torch.equal, one.kept, two.kept))
    assert torch.equal(output.sequences, expected.sequences)
    return worst(logits_of(output), logits_of(expected))


@pytest.mark.parametrize("family", family_models.each(*WEIGHED))
@torch.no_grad()
def test_every_family_equals_sdpa(family, flash_model):
    if (flash := family_models.family(family).flash) is not True:
        pytest.skip(str(flash))
    assert compared(family, "0+2+4", flash_model) < TOLERANCE


@pytest.mark.parametrize(
    ("schedule", "rows", "options"),
    [
        ("1+3", None, {}),
        ("0+2+4", "one", {"num_beams": 3}),
        ("0+2+4", "one", {"prompt_lookup_num_tokens": 3}),
        ("2", "one", {"use_cache": False}),
    ],
    ids=str,
)
@torch.no_grad()
def test_beams_crops_and_no_cache(schedule, rows, options, flash_model):
    assert compared("llava", schedule, flash_model, rows, **options) < TOLERANCE


def turns(model, config):
    """Return the logits of a second turn, and of one more token."""
    batch = make_batch(model, ((3, (20, 20), 4), (20, (20, 20), 6)))
    one = dict(batch.inputs)
    mask, found = one["attention_mask"], []
    more = torch.tensor([[5, 9, 13], [7, 11, 15]])
    one["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
    with prunetune.apply(model, config):
        cache = DynamicCache(config=model.config.get_text_config())
        model(**one, **cache_argument(model, cache))
        for start, stop in ((0, 2), (2, 3)):
            mask = torch.nn.functional.pad(mask, (0, stop - start), value=1)
            at = (mask.cumsum(1) - 1)[:, start - stop :]
            found.append(
                model(
                    input_ids=more[:, start:stop], attention_mask=mask, position_ids=at,
                    **cache_argument(model, cache),
                ).logits
            )  # fmt: skip
    return torch.cat(found, 1), cache


@torch.no_grad()
def test_a_second_turn(flash_model):
    plain, model = tiny("llava"), flash_model("llava")
    config = heavy(plain, "0+2+4")
    own = model.model.language_model.layers[0].self_attn.config
    expected, _ = turns(plain, config)
    found, cache = turns(model, config)
    assert worst(found, expected) < TOLERANCE
    # The cache holds the model's own keys; and the model is as it was.
    assert cache.layers[0].keys.shape[-1] == plain.model.language_model.layers[0].self_attn.head_dim
    assert all(layer.self_attn.config is own for layer in model.model.language_model.layers)


# -- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"head_dim": WIDEST}, "256 numbers would be wider"),
        ({"attn_logit_softcapping": 50.0}, "soft-capped"),
    ],
    ids=str,
)
def test_what_cannot_be_widened_is_refused(change, reason, flash_model):
    model = flash_model("llava")
    text = model.model.language_model.config
    for name, value in change.items():
        setattr(text, name, value)
    with pytest.raises(UnsupportedModelError, match=rf"\A[^\n]*{reason}[^\n]*without mass\Z"):
        prunetune.apply(model, heavy(model, "2"))


@torch.no_grad()
def test_a_bias_that_does_not_arrive_is_refused(flash_model):
    """And the model is left as found."""
    model = flash_model("llava")
    attention = model.model.language_model.layers[3].self_attn
    own, config = attention.config, heavy(model, "2")
    for layer in model.model.language_model.layers:
        layer.self_attn.forward = lambda *a, real=layer.self_attn.forward, **k: real(
            *a, **{name: k[name] for name in k if name != KEY_BIAS}
        )
    with (
        pytest.raises(UnsupportedModelError, match="does not hand on to its attention"),
        prunetune.apply(model, config),
    ):
        model(**make_batch(model).inputs)
    assert attention.config is own


# -- planted bugs ------------------------------------------------------------------------------


def scaled_by_its_own_width(patch):
    real = widened.widened
    patch.setattr(widened, "widened", lambda q, k, v, b, s: real(q, k, v, b, s * 1.1))


def on_the_wrong_key(patch):
    real = widened.widened
    patch.setattr(widened, "widened", lambda q, k, v, b, s: real(q, k, v, b.roll(1, 1), s))


def lost_at_decode(patch):
    real = frame.segment_mask

    def lost(config, hidden, *rest):
        mask, bias = real(config, hidden, *rest)
        return mask, KeyBias(0 * bias.rows) if bias and hidden.shape[1] == 1 else bias

    patch.setattr(frame, "segment_mask", lost)


@pytest.mark.parametrize("bug", [scaled_by_its_own_width, on_the_wrong_key, lost_at_decode])
@torch.no_grad()
def test_red_with_a_bug(bug, flash_model, monkeypatch):
    bug(monkeypatch)
    with pytest.raises(AssertionError):
        assert compared("llava", "0+2+4", flash_model) < TOLERANCE
