"""What counts as the question, and scorers of states, question and keys, in forwards."""

import copy
from typing import ClassVar

import pytest
import torch
from chosen import staged
from family_models import each, family
from mutants import RED
from reference import alive_slots, masked, worst
from reference_models import make_batch, tiny
from test_runtime import TOLERANCE
from test_runtime_taps import patches_before

import prunetune
from prunetune.errors import ConfigError
from prunetune.runtime.apply import family_of
from prunetune.runtime.choice import choose, question
from prunetune.scorers import Scorer

BOS, END = 1, 2
ASKING = {"name": "text_relevance"}


class Probe(Scorer):
    """Keeps what it is given."""

    needs: ClassVar[frozenset] = frozenset({"states", "question", "keys"})
    seen: ClassVar[list] = []
    name: str = "probe"

    def score(self, ctx):
        self.seen.append(ctx)
        return torch.arange(float(len(ctx)))


@pytest.fixture(autouse=True)
def probe():
    Probe.seen.clear()
    return Probe()


def said(model, *rows, seed=0):
    """Return a batch of rows: a list is text, an int so many tokens of filler, a pair an image."""
    sizes = [[len(i) if isinstance(i, list) else i for i in row] for row in rows]
    batch = make_batch(model, sizes, seed)
    images = family(model).image
    for b, row in enumerate(rows):
        ids = batch.inputs["input_ids"][b]
        at = int((~batch.valid[b]).sum())
        for item in row:
            if isinstance(item, list):
                ids[at : at + len(item)] = torch.tensor(item)
                at += len(item)
            elif isinstance(item, tuple):
                own = batch.images[b]
                assert item == images
                at += len(family(model).piece(model, item, 0).ids)
                assert own
            else:
                ids[at : at + item] = 50
                at += item
        assert at == len(ids)
    return batch


@torch.no_grad()
def questions(model, batch, **inputs):
    """Return the ids of the question about each image, in order."""
    with prunetune.apply(
        model, staged(model, {"layer": 1, "retention": 0.5, "scorers": [Probe()]})
    ):
        Probe.seen.clear()
        model(**batch.inputs | inputs)
    table = model.get_input_embeddings().weight
    return [torch.cdist(ctx.text, table).argmin(1).tolist() for ctx in Probe.seen]


def image(model):
    return family(model).image


@pytest.mark.parametrize("name", each("llava", "internvl", "qwen2_5_vl"))
def test_the_question_is_behind_the_image_up_to_the_turns_end(name):
    model = tiny(name)
    model.generation_config.eos_token_id = [END]
    pair = image(model)
    marks = question.marks_of(family_of(model))
    assert END in marks.ends
    assert marks.ends | {model.config.image_token_id} <= marks.special
    batch = said(
        model,
        [[30, 31], pair, [10, BOS, 11, END, 40, 41]],
        [[30], pair, [12, 13], pair, [14]],
        [[30, 31], pair, [END, 15]],
        [[30, 31], pair],
    )
    behind = [[i for i in row if i < 90] for row in questions(model, batch)]
    first = [10, 11] if BOS in marks.special else [10, BOS, 11]
    assert behind == [first, [12, 13, 14], [14], [], []]


def test_padding_of_either_side_is_no_question():
    model = tiny("llava")
    model.generation_config.eos_token_id = [END]
    batch = said(model, [[30], image(model), [10, 11]], [[30] * 9, image(model), [12] * 9])
    left = questions(model, batch)
    inputs = {k: v.clone() for k, v in batch.inputs.items()}
    gone = int((~batch.valid[0]).sum())
    for name in ("input_ids", "attention_mask"):
        inputs[name][0] = inputs[name][0].roll(-gone, 0)
    assert questions(model, type(batch)(inputs, batch.images)) == left == [[10, 11], [12] * 9]


def test_of_packed_samples_each_asks_for_its_own():
    """A 4-D mask: two samples in a row do not see each other."""
    model = tiny("llava")
    model.generation_config.eos_token_id = [END]
    pair = image(model)
    batch = said(model, [[30], pair, [10, 11], [30], pair, [12, 13]])
    length, half = batch.length, batch.length // 2
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    seen[half:, :half] = False
    assert questions(model, batch, attention_mask=seen[None, None]) == [[10, 11], [12, 13]]
    # The twin: one sample.
    assert questions(model, batch) == [[10, 11, 30, 12, 13], [12, 13]]


@torch.no_grad()
def test_embeddings_instead_of_ids():
    model = tiny("llava")
    model.generation_config.eos_token_id = [END]
    batch = said(model, [[30], image(model), [10, 11, END, 40]])
    ids = batch.inputs["input_ids"]
    marks = question.marks_of(family_of(model))
    embeds = model.get_input_embeddings()(ids)
    call = question.Forward(image_mask=ids == model.config.image_token_id, embeds=embeds)
    view = family_of(model)
    found = question._ids(view, call, marks, torch.device("cpu"))
    assert torch.equal(found == END, ids == END)
    assert torch.equal(found == model.config.image_token_id, call.image_mask)


@torch.no_grad()
def given_right(name, layer):
    """Compare states, keys and question with a masked full-length run."""
    model, plain = tiny(name), tiny(name)
    batch = make_batch(model)
    first = {"layer": 0, "retention": 0.8, "scorers": [{"name": "coverage"}]}
    stages = [first] if layer > 1 else []
    config = staged(model, *stages, {"layer": layer, "retention": 0.5, "scorers": [Probe()]})
    with prunetune.apply(model, config) as handle:
        model(**batch.inputs)
        trace = handle.trace[-1]
    alive, got = alive_slots(tuple(batch.valid.shape), (0, trace)), {}
    layers = family(plain).text_model(plain).layers
    hooks = [
        layers[layer].register_forward_pre_hook(
            lambda m, args, kwargs: got.update(states=args[0]), with_kwargs=True
        ),
        layers[layer - 1].self_attn.k_proj.register_forward_hook(
            lambda m, args, output: got.update(keys=output)
        ),
    ]
    with masked(plain, batch.valid, alive):
        plain(**batch.inputs, use_cache=False)
    for hook in hooks:
        hook.remove()
    geometries = [list(row) for row in trace.geometries]
    looked = patches_before(batch, geometries, trace, len(stages))
    table = model.get_input_embeddings()
    for (row, slots), ctx in zip(looked, Probe.seen, strict=True):
        assert worst(ctx.states, got["states"][row, slots]) < TOLERANCE
        assert worst(ctx.keys.flatten(1), got["keys"][row, slots]) < TOLERANCE
        ids = batch.inputs["input_ids"][row]
        assert all((table.weight == t).all(1).any() for t in ctx.text)
        assert len(ctx.text) <= int((ids != model.config.image_token_id).sum())


@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_scorers_are_given_states_and_keys(name, layer):
    given_right(name, layer)


def keys_of_the_stages_own_layer(patch):
    right = choose.key_states
    patch.setattr(choose, "key_states", lambda layer, states: right(layer, states * 1.5 + 0.1))


def states_of_the_layer_before(patch):
    right = choose._context

    def context(plan, stage, image, patches, hidden, at, b, tap):
        return right(plan, stage, image, patches, tap.source if tap else hidden, at, b, tap)

    patch.setattr(choose, "_context", context)


@pytest.mark.parametrize("bug", [keys_of_the_stages_own_layer, states_of_the_layer_before])
def test_red_with_a_bug(bug, monkeypatch):
    bug(monkeypatch)
    with pytest.raises(RED):
        given_right("llava", 3)


@torch.no_grad()
def kept(model, config, batch):
    with prunetune.apply(model, config) as handle:
        model(**batch.inputs)
        trace = handle.trace[-1]
    return [
        torch.searchsorted(own, row).tolist()
        for own, row in zip(trace.image_slots, trace.stages[0].kept)
    ]


DEPENDENT = {
    "text_relevance": {"scorers": [ASKING]},
    "cover": {"selector": {"name": "cover", "text": 4.0}},
}


@pytest.mark.parametrize("fields", DEPENDENT.values(), ids=list(DEPENDENT))
def test_another_question_keeps_other_tokens(fields):
    """And the same question the same ones, whatever stands before, behind its end and beside it."""
    model = tiny("llava")
    model.generation_config.eos_token_id = [END]
    config = staged(model, {"layer": 0, "retention": 0.3, **fields})
    assert config.prompt_dependent
    pair = image(model)

    def rows(*rows):
        return kept(model, config, said(model, *rows))

    one = rows([[30], pair, [10, 11, END, 40]])[0]
    assert one == rows([[30, 31, 32], pair, [10, 11, END, 44, 45]])[0]
    assert one != rows([[30], pair, [12, 60, END, 40]])[0]
    together = rows([[30], pair, [10, 11, END, 40]], [[30], pair, [12, 60, END, 40]])
    assert together[0] == one
    plain = staged(model, {"layer": 0, "retention": 0.3, "selector": {"name": "cover"}})
    assert not plain.prompt_dependent
    assert kept(model, plain, said(model, [[30], pair, [10, 11, END, 40]])) == kept(
        model, plain, said(model, [[30], pair, [12, 60, END, 40]])
    )


def test_an_empty_question_is_a_constant():
    model = tiny("llava")
    config = staged(model, {"layer": 0, "retention": 0.3, "scorers": [ASKING]})
    batch = said(model, [[30, 31], image(model)])
    assert kept(model, config, batch)[0] == list(range(len(kept(model, config, batch)[0])))


@pytest.mark.parametrize("kept_by", DEPENDENT.values(), ids=list(DEPENDENT))
@torch.no_grad()
def test_a_later_turn_goes_on_with_what_the_first_question_kept(kept_by):
    """Over the cache, or read again: the choice is by the question behind the picture."""
    model = tiny("llava")
    model.generation_config.eos_token_id = [END]
    config = staged(model, {"layer": 0, "retention": 0.3, **kept_by})
    first = [[30], image(model), [10, 11, END, 40]]
    later = [12, 60, END, 40]
    one, whole = said(model, first), said(model, [*first, later])
    with prunetune.apply(model, config) as handle:
        expected = model(**whole.inputs).logits[:, -1]
        cache = model(**one.inputs, use_cache=True).past_key_values
        got = model(
            input_ids=torch.tensor([later]), past_key_values=cache,
            attention_mask=torch.ones(1, whole.length, dtype=torch.long),
        ).logits[:, -1]  # fmt: skip
        assert torch.equal(handle.trace[0].stages[0].kept[0], handle.trace[1].stages[0].kept[0])
    assert worst(got, expected) < TOLERANCE


def cached(model, config, batch, more, crop=None):
    with torch.no_grad(), prunetune.apply(model, config):
        cache = model(**batch.inputs, use_cache=True).past_key_values
        cache = copy.deepcopy(cache)
        past = batch.length
        if crop is not None:
            cache.crop(crop - past)
            past = crop
        ids = torch.tensor([more])
        mask = torch.ones(1, past + len(more), dtype=torch.long)
        return model(input_ids=ids, past_key_values=cache, attention_mask=mask).logits


@pytest.mark.parametrize("fields", DEPENDENT.values(), ids=list(DEPENDENT))
def test_a_cached_picture_for_another_question_is_refused(fields):
    model = tiny("llava")
    model.generation_config.eos_token_id = [END]
    asking = staged(model, {"layer": 2, "retention": 0.3, **fields})
    blind = staged(model, {"layer": 2, "retention": 0.3, "selector": {"name": "cover"}})
    prefix = said(model, [[30], image(model)])
    whole = said(model, [[30], image(model), [10, 11, END, 40]])
    with pytest.raises(ConfigError, match=r"\A[^\n]*without one; run the picture together[^\n]*\Z"):
        cached(model, asking, prefix, [12, 13])
    end = whole.length - 2
    with pytest.raises(
        ConfigError, match=rf"\A[^\n]*cropped to {end - 1}[^\n]*token {end}[^\n]*\Z"
    ):
        cached(model, asking, whole, [12, 13], crop=end - 1)
    # The twins: a turn behind the question, a prefix that nothing depends on, a single step.
    cached(model, asking, whole, [12, 13], crop=end)
    cached(model, blind, prefix, [12, 13])
    cached(model, asking, prefix, [12])


@pytest.mark.parametrize("fields", DEPENDENT.values(), ids=list(DEPENDENT))
@torch.no_grad()
def test_no_cache_asks_the_same_question_at_every_step(fields):
    model = tiny("llava")
    config = staged(model, {"layer": 2, "retention": 0.3, **fields})
    batch = said(model, [[30], image(model), [10, 11]])
    options = {"max_new_tokens": 6, "do_sample": False}
    with prunetune.apply(model, config):
        cached = model.generate(**batch.inputs, **options)
        assert torch.equal(cached, model.generate(**batch.inputs, **options, use_cache=False))
        beams = model.generate(**batch.inputs, **options, num_beams=3)
    assert beams.shape == cached.shape
