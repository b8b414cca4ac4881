"""Several turns on one pruned cache, against one full-length recomputation of the conversation."""

import copy

import pytest
import torch
from reference import alive_slots, reference_logits, worst
from reference_models import (
    FAMILIES,
    IMAGE,
    SCHEDULES,
    THOROUGH,
    Batch,
    family,
    make_batch,
    make_config,
    tiny,
)
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import QuantizedLayer

import prunetune
from prunetune.errors import UnsupportedModelError

TOLERANCE = 1e-5
NEW = 4
POLICIES = [(s, "original") for s in SCHEDULES] + [("0", "packed"), ("0+1+3", "packed")]
SIZES = {name: family(name).image for name in FAMILIES}


class Chat:
    """A conversation held with ``generate`` over one cache, and its reference."""

    def __init__(self, model, config, cache=None):
        self.model, self.config = model, config
        self.plain = copy.deepcopy(model)
        self.cache = DynamicCache(config=model.config.get_text_config()) if cache is None else cache
        self.inputs, self.late = None, False
        self.passes, self.logits, self.places = [], [], []

    def turn(self, handle, batch):
        """Add a turn's tokens (and images) and generate; remember what to compare."""
        spec, inputs = family(self.model), dict(batch.inputs)
        images = {k: inputs.pop(k) for k in spec.visual_inputs if k in inputs}
        past = 0
        if self.inputs:
            past = self.inputs["input_ids"].shape[1] - 1
            inputs = {k: torch.cat([self.inputs[k], v], 1) for k, v in inputs.items()}
        before = self.inputs or {}
        joined = {k: spec.join(k, before[k], v) if k in before else v for k, v in images.items()}
        self.late = self.late or bool(before and images)
        explicit = (
            spec.explicit_positions(self.model, before | joined | inputs) if self.late else {}
        )
        pruned = len(handle.trace)
        output = self.model.generate(
            **inputs, past_key_values=self.cache, do_sample=False, max_new_tokens=NEW,
            return_dict_in_generate=True, output_logits=True, **images, **explicit,
        )  # fmt: skip
        assert len(handle.trace) == pruned + bool(images)
        if images:
            self.passes.append((past, handle.trace[-1]))
        self.places.append(inputs["input_ids"].shape[1])
        self.logits.append(torch.stack(output.logits, 1))
        grown = {k: torch.nn.functional.pad(v, (0, NEW)) for k, v in inputs.items()}
        grown["input_ids"] = output.sequences
        grown["attention_mask"][:, -NEW:] = 1
        self.inputs = before | joined | grown

    def gap(self, **options):
        """Return the largest difference between all turns' logits and the reference."""
        batch = Batch(self.inputs, [])
        alive = alive_slots(tuple(batch.valid.shape), *self.passes)
        reference = reference_logits(self.plain, batch, alive, **options)
        return max(
            worst(logits, reference[:, place - 1 : place - 1 + NEW])
            for logits, place in zip(self.logits, self.places, strict=True)
        )


def cache_of(kind, model):
    text = model.config.get_text_config()
    return DynamicCache(config=text) if kind == "dynamic" else StaticCache(text, max_cache_len=320)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize(("schedule", "positions"), POLICIES)
@pytest.mark.parametrize("family", THOROUGH)
@torch.no_grad()
def test_text_after_images(family, schedule, positions, kind):
    """Two more turns of text, ragged and left padded: padding ends up inside the conversation."""
    model = tiny(family)
    config = make_config(model, schedule, positions=positions)
    chat = Chat(model, config, cache_of(kind, model))
    with prunetune.apply(model, config) as handle:
        chat.turn(handle, make_batch(model))
        chat.turn(handle, make_batch(model, ((3,), (5,), (1,)), seed=5))
        chat.turn(handle, make_batch(model, ((2,), (2,), (2,)), seed=6))
    assert chat.gap(packed=positions == "packed") < TOLERANCE


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize(("schedule", "positions"), POLICIES)
@pytest.mark.parametrize("family", THOROUGH)
@torch.no_grad()
def test_a_new_image_in_a_later_turn(family, schedule, positions, kind):
    model, size = tiny(family), SIZES[family]
    config = make_config(model, schedule, positions=positions)
    chat = Chat(model, config, cache_of(kind, model))
    with prunetune.apply(model, config) as handle:
        chat.turn(handle, make_batch(model, ((2, size, 3),), seed=1))
        chat.turn(handle, make_batch(model, ((2, size, 4),), seed=2))
        chat.turn(handle, make_batch(model, ((3,),), seed=3))
    assert len(chat.passes) == 2
    assert chat.gap(packed=positions == "packed") < TOLERANCE


@pytest.mark.parametrize("schedule", SCHEDULES)
@torch.no_grad()
def test_text_before_the_first_image(schedule):
    """The cache was filled without pruning; a later turn brings the first images, ragged."""
    model = tiny("llava")
    config = make_config(model, schedule)
    chat = Chat(model, config)
    with prunetune.apply(model, config) as handle:
        chat.turn(handle, make_batch(model, ((5,), (3,), (4,)), seed=1))
        chat.turn(handle, make_batch(model, seed=2))
        chat.turn(handle, make_batch(model, ((2,), (3,), (1,)), seed=3))
    assert chat.gap() < TOLERANCE


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("family", THOROUGH)
@torch.no_grad()
def test_a_copied_cache_continues_alike(family, schedule):
    """By plain forwards, without ``generate``: several tokens, then one."""
    model = tiny(family)
    plain, batch, config = copy.deepcopy(model), make_batch(model), make_config(model, schedule)
    more = torch.randint(2, IMAGE, (3, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.nn.functional.pad(batch.inputs["attention_mask"], (0, 5), value=1)
    with prunetune.apply(model, config) as handle:
        cache = model(**batch.inputs, use_cache=True).past_key_values
        trace = handle.trace[-1]
        results = []
        for one in (copy.deepcopy(cache), cache):
            step = {"past_key_values": one, "use_cache": True}
            first = model(input_ids=more[:, :4], attention_mask=mask[:, :-1], **step).logits
            last = model(input_ids=more[:, 4:], attention_mask=mask, **step).logits
            results.append(torch.cat([first, last], 1))
    assert torch.equal(results[0], results[1])
    alive = alive_slots(tuple(batch.valid.shape), (0, trace))
    reference = reference_logits(plain, batch, alive, more)[:, batch.length :]
    assert worst(results[0], reference) < TOLERANCE


@torch.no_grad()
def test_a_cache_of_another_config_is_refused():
    from prunetune.errors import ConfigError

    model = tiny("llava")
    batch = make_batch(model)
    with prunetune.apply(model, make_config(model, "2")):
        cache = model(**batch.inputs, use_cache=True).past_key_values
    more = {"input_ids": torch.full((3, 1), 5), "past_key_values": cache}
    with (
        prunetune.apply(model, make_config(model, "0")),
        pytest.raises(ConfigError, match="cache"),
    ):
        model(**more)


@pytest.mark.parametrize("schedule", SCHEDULES)
@torch.no_grad()
def test_a_cache_cropped_to_before_its_images_is_refused(schedule):
    """Its layers hold unequal numbers of them; what came after the images can be cropped."""
    from prunetune.errors import ConfigError

    model = tiny("llava")
    batch, config = make_batch(model, ((5, SIZES["llava"], 4),)), make_config(model, schedule)
    more = {"input_ids": torch.full((1, 2), 7)}
    with prunetune.apply(model, config):
        cache = model(**batch.inputs, use_cache=True).past_key_values
        expected = model(**more, past_key_values=copy.deepcopy(cache)).logits
        model(**more, past_key_values=cache)
        cache.crop(-2)
        assert worst(model(**more, past_key_values=cache).logits, expected) < TOLERANCE
        cache.crop(-18)
        with pytest.raises(ConfigError, match=r"\Athis cache was cropped to 18 tokens[^\n]+\Z"):
            model(**more, past_key_values=cache)


class Halved(QuantizedLayer):
    """A quantised layer without a package that quantises."""

    def _quantize(self, tensor, axis):
        return tensor.half()

    def _dequantize(self, q_tensor):
        return q_tensor.float()


@pytest.mark.parametrize(("scorer", "refused"), [("last_query", True), ("coverage", False)])
@pytest.mark.parametrize("residual", [128, 2], ids=["rest", "flushed"])
@torch.no_grad()
def test_quantised_keys_are_not_read(scorer, refused, residual):
    """A later image's attention row would miss the keys that the cache has quantised."""
    model = tiny("llava")
    size = SIZES["llava"]
    cache = DynamicCache()
    cache.layers = [Halved(residual_length=residual) for _ in model.model.language_model.layers]
    config = make_config(model, [(2, 0.5, (scorer,))])
    first, second = make_batch(model, ((2, size, 3),)), make_batch(model, ((2, size, 4),), seed=2)
    with prunetune.apply(model, config):
        model(**first.inputs, past_key_values=cache)
        model(input_ids=torch.full((1, 3), 7), past_key_values=cache)
        again = second.inputs | {"attention_mask": None}
        if refused:
            with pytest.raises(UnsupportedModelError, match=r"\A[^\n]+last_query[^\n]+\Z"):
                model(**again, past_key_values=cache)
        else:
            model(**again, past_key_values=cache)
