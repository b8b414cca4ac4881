"""What a release of transformers must keep is checked: a break is refused, before an answer."""

import copy
import logging
import sys
from contextlib import nullcontext

import pytest
import torch
import transformers
from reference import worst
from reference_models import family, make_batch, make_config, tiny
from test_runtime_generate import generate
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

import prunetune
from prunetune import release
from prunetune.errors import UnsupportedModelError
from prunetune.release import cache_argument, cache_of
from prunetune.runtime import frame, handle, leave
from prunetune.runtime.promises import Suspicion, check_position

REFUSED = rf"\A[^\n]*transformers {transformers.__version__} \(tested: [^\n]*{{}}[^\n]*\Z"
SCHEDULES = ("0", "0+1+3", "2+4")
AT_0 = ("0", "0+1+3")


def answer(model, batch, config, steps=4):
    with torch.no_grad(), prunetune.apply(model, config):
        return generate(model, batch, max_new_tokens=steps)


def stepped(model, batch, config):
    """Decode by forwards that leave positions to the model, as a server's loop does."""
    cache, logits = DynamicCache(config=model.config.get_text_config()), []
    with torch.no_grad(), prunetune.apply(model, config):
        model(**batch.inputs, **cache_argument(model, cache))
        for token in (5, 17):
            ids = torch.full((len(batch.inputs["input_ids"]), 1), token)
            logits.append(model(input_ids=ids, **cache_argument(model, cache)).logits)
    return torch.cat(logits, 1)


# -- planted breaks ----------------------------------------------------------------------------


@pytest.fixture
def alone():
    model = tiny("llava")
    return model, make_batch(model, ((3, (20, 20), 6),))


def hide_from_layers(model, patch):
    """Give the decoder layers their cache under a name, and in a wrapper, that nobody knows."""

    class Wrapped:
        def __init__(self, cache):
            self.cache = cache

    name = next(iter(cache_argument(model, None)))
    for layer in model.model.language_model.layers:
        forward = layer.forward

        def renamed(hidden_states, *args, bundle=None, forward=forward, **kwargs):
            return forward(hidden_states, *args, **{name: bundle and bundle.cache}, **kwargs)

        patch.setattr(layer, "forward", renamed)

        def wrapping(module, args, kwargs):
            return args, {k: v for k, v in kwargs.items() if k != name} | {
                "bundle": Wrapped(kwargs[name])
            }

        layer.register_forward_pre_hook(wrapping, with_kwargs=True)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_cache_that_the_layers_get_unseen(schedule, alone, monkeypatch):
    model, batch = alone
    hide_from_layers(model, monkeypatch)
    plain = copy.deepcopy(tiny("llava"))
    with torch.no_grad():
        assert torch.equal(model(**batch.inputs).logits, plain(**batch.inputs).logits)
    for run in (answer, stepped):
        with pytest.raises(UnsupportedModelError, match=REFUSED.format("cache")):
            run(model, batch, make_config(model, schedule))


@pytest.mark.parametrize("schedule", AT_0)
def test_unchecked_it_would_answer_wrongly(schedule, alone, monkeypatch):
    """The twin: as 5.24 was answered before the cache was known by its new name."""
    model, batch = alone
    config = make_config(model, schedule)
    right = stepped(model, batch, config)
    hide_from_layers(model, monkeypatch)
    monkeypatch.setattr(handle, "check_cache", lambda *given: None)
    monkeypatch.setattr(leave, "check_lengths", lambda *given: None)
    assert worst(stepped(model, batch, config), right) > 0.1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_new_name_alone_changes_nothing(schedule, alone, monkeypatch):
    """A cache is known by its class, too."""
    model, batch = alone
    config = make_config(model, schedule)
    right = stepped(model, batch, config)
    name = next(iter(cache_argument(model, None)))
    for layer in model.model.language_model.layers:
        forward = layer.forward
        monkeypatch.setattr(
            layer,
            "forward",
            lambda *a, kv_state=None, forward=forward, **k: forward(*a, **{name: kv_state}, **k),
        )
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: (
                args,
                {("kv_state" if k == name else k): v for k, v in kwargs.items()},
            ),
            with_kwargs=True,
        )
    assert worst(stepped(model, batch, config), right) == 0


def forgets_a_token(original):
    """A cache that leaves out a token of every prefill, at layer 3 alone."""

    def update(self, key_states, value_states, *args, **kwargs):
        keys, values = original(self, key_states, value_states, *args, **kwargs)
        if getattr(self, "broken", False) and key_states.shape[2] > 1:
            self.keys, self.values = self.keys[:, :, 1:], self.values[:, :, 1:]
        return keys, values

    return update


def with_broken_layer(model, batch, config, patch):
    patch.setattr(DynamicLayer, "update", forgets_a_token(DynamicLayer.update))
    cache = DynamicCache(config=model.config.get_text_config())
    cache.layers[3].broken = True
    with torch.no_grad(), prunetune.apply(model, config):
        return model(**batch.inputs, **cache_argument(model, cache))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_cache_of_the_wrong_length(schedule, alone, monkeypatch):
    model, batch = alone
    with pytest.raises(UnsupportedModelError, match=REFUSED.format("layer 3 cached")):
        with_broken_layer(model, batch, make_config(model, schedule), monkeypatch)


def test_a_wrong_length_unchecked_would_pass(alone, monkeypatch):
    model, batch = alone
    monkeypatch.setattr(leave, "check_lengths", lambda *given: None)
    output = with_broken_layer(model, batch, make_config(model, "2+4"), monkeypatch)
    assert cache_of(output).layers[3].keys.shape[2] != cache_of(output).layers[2].keys.shape[2]


def counts_what_is_cached(patch):
    """Positions of decoding steps count what layer 0 holds."""
    patch.setattr(leave, "count_dropped", lambda cache, layers, total: None)
    patch.setattr(leave.CacheState, "floor", property(lambda s: 0, lambda s, value: None))
    # A release would read the length elsewhere; here the handle must still know the right one.
    original = handle.Inputs.read

    def read(self, args, kwargs, wanted):
        forward, instead = original(self, args, kwargs, wanted)
        state = getattr(forward.cache, "_prunetune_state", None)
        if state is not None and forward.past:
            forward.past += state.held[0].behind
        return forward, instead

    patch.setattr(handle.Inputs, "read", read)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("schedule", AT_0)
def test_positions_that_count_what_is_cached(schedule, name, monkeypatch):
    model = tiny(name)
    batch = make_batch(model, ((3, family(name).image, 6),))
    config = make_config(model, schedule)
    right = stepped(model, batch, config)
    counts_what_is_cached(monkeypatch)
    with pytest.raises(UnsupportedModelError, match=REFUSED.format("position")):
        stepped(model, batch, config)
    monkeypatch.setattr(frame, "check_position", lambda *given, **more: None)
    assert worst(stepped(model, batch, config), right) > 1e-3


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_positions_of_a_callers_own_are_not_suspected(schedule, alone):
    """A tree of candidates numbers its tokens as it likes."""
    model, batch = alone
    length = batch.length
    with torch.no_grad(), prunetune.apply(model, make_config(model, schedule)):
        output = model(**batch.inputs, use_cache=True)
        for position in (length, length + 7, length - 1):
            ids, at = torch.tensor([[5]]), torch.tensor([[position]])
            model(input_ids=ids, position_ids=at, **cache_argument(model, cache_of(output)))


def test_a_mask_as_long_as_what_is_cached(alone, monkeypatch):
    """A release that sizes masks by what a layer holds: padded rows of one batch."""
    model, _ = alone
    batch, config = make_batch(model), make_config(model, "0")
    answer(model, batch, config)
    monkeypatch.setattr(
        "prunetune.runtime.layers.counted.Counted.get_mask_sizes",
        lambda self, length: self.physical_sizes(length),
    )
    with pytest.raises(UnsupportedModelError, match=REFUSED.format("keys of a sequence")):
        answer(model, batch, config)


def test_nothing_is_left_behind_by_a_refusal(alone, monkeypatch):
    model, batch = alone
    config = make_config(model, "0+1+3")
    right = answer(model, batch, config)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UnsupportedModelError):
        with_broken_layer(model, batch, config, patch)
    again = answer(model, batch, config)
    assert torch.equal(again.sequences, right.sequences)


# -- versions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "tested"),
    [
        ("5.16.1", False), ("5.17.0", True), ("5.20.2", True), ("5.24.0", True),
        ("5.24.0.dev0", True), ("5.25.0", False), ("5.25.0rc1", False), ("6.0.0", False),
        ("nonsense", False),
    ],
)  # fmt: skip
def test_the_tested_range(version, tested):
    assert release.is_tested(version) == tested


def test_an_untested_release_is_said_once(alone, monkeypatch, caplog):
    model, _ = alone
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "5.99.0")
    monkeypatch.setattr(release, "_warned", set())
    with caplog.at_level(logging.WARNING, "prunetune"):
        for _ in range(2):
            prunetune.apply(model, make_config(model, "2")).remove()
    said = [r.getMessage() for r in caplog.records if "5.99.0" in r.getMessage()]
    assert len(said) == 1
    assert "5.17 to 5.24" in said[0]
    assert "prunetune verify" in said[0]


def test_names_that_a_release_dropped(alone, monkeypatch):
    """Met when a config is applied, before any forward."""
    model, _ = alone
    monkeypatch.setattr(release, "CACHE_NAMES", ("kv_state",))
    with pytest.raises(UnsupportedModelError, match=REFUSED.format("kv_state")):
        prunetune.apply(model, make_config(model, "2"))
    assert "_prunetune_handle" not in vars(model.model)


def test_layers_that_are_told_less(alone, monkeypatch):
    model, batch = alone
    layer = model.model.language_model.layers[2]
    with torch.no_grad(), prunetune.apply(model, make_config(model, "2")):
        hook = layer.register_forward_pre_hook(
            lambda m, a, k: (a, {n: v for n, v in k.items() if n != "position_embeddings"}),
            with_kwargs=True, prepend=True,
        )  # fmt: skip
        with pytest.raises(UnsupportedModelError, match=REFUSED.format("position_embeddings")):
            model(**batch.inputs)
        hook.remove()


# -- without waiting for a device --------------------------------------------------------------


def test_a_suspicion_on_the_host_is_raised_at_once():
    suspicion = Suspicion()
    suspicion.note(torch.tensor(False))
    suspicion.settle()
    with pytest.raises(UnsupportedModelError, match="position"):
        suspicion.note(torch.tensor(True))
    suspicion.settle(wait=True)  # said once


def test_no_step_reads_a_device():
    """Decoding compares positions as tensors; only the host's own are read."""
    state = frame.CacheState("", [], position=40, reached=41)
    wrong = check_position(
        state, 41, torch.tensor([[41]], device="meta"), 1, chosen=False, dropped=3
    )
    assert wrong.device.type == "meta"
    right = check_position(state, 45, torch.tensor([[45]]), 1, chosen=False, dropped=3)
    assert not right
    assert check_position(state, 45, torch.tensor([[42]]), 1, chosen=True, dropped=3)
    assert not check_position(state, 45, torch.tensor([[44]]), 1, chosen=True, dropped=3)


class Reads(TorchDispatchMode):
    """Counts what would make a step wait for a device: tensors' values read by the host."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.name() in ("aten::_local_scalar_dense", "aten::equal")
        return function(*args, **(kwargs or {}))


def reads_of_a_step(model, batch, config=None):
    with torch.no_grad(), prunetune.apply(model, config) if config else nullcontext():
        cache = cache_of(model(**batch.inputs, use_cache=True))
        mask = torch.nn.functional.pad(batch.inputs["attention_mask"], (0, 1), value=1)
        ids = torch.full((len(mask), 1), 5)
        with Reads() as reads:
            model(input_ids=ids, attention_mask=mask, **cache_argument(model, cache))
    return reads.count


@pytest.mark.parametrize("rows", [None, ((3, (20, 20), 6),)], ids=["ragged", "one"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_decoding_step_waits_no_more_often_than_an_unpruned_one(schedule, rows, monkeypatch):
    model = tiny("llava")
    batch, config = make_batch(model, rows), make_config(model, schedule)
    plain = reads_of_a_step(model, batch)
    # On the host a comparison is read at once; on a device, one step later.
    assert reads_of_a_step(model, batch, config) == plain + 1
    monkeypatch.setattr(handle.Suspicion, "note", lambda self, wrong: None)
    assert reads_of_a_step(model, batch, config) == plain
    # The twin: a step that asks a tensor.
    real = frame.new_slots
    monkeypatch.setattr(frame, "new_slots", lambda *a: (bool(a[1].any()), real(*a))[1])
    assert reads_of_a_step(model, batch, config) == plain + 1
