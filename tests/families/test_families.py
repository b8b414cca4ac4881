"""The contract that every family meets; ``THOROUGH`` ones go through more combinations elsewhere.

Each test is one that the thorough ones go through too, at settings that cover the most.
"""

import family_models
import pytest
import test_runtime
import test_runtime_generate
import test_runtime_geometry
import test_runtime_models
import test_runtime_refusals
import test_runtime_removal
import test_runtime_taps
import test_runtime_turns
import torch
import transformers
from family_models import each
from packaging.version import Version
from reference import alive_slots, measure, reference_logits, worst
from reference_models import available, make_batch, make_config, tiny

import prunetune
from prunetune.config import ModelRef, PruningConfig, Stage
from prunetune.errors import UnsupportedModelError
from prunetune.families import FAMILIES as TABLE
from prunetune.runtime.apply import family_of
from prunetune.scorers import SCORERS

TOLERANCE = test_runtime.TOLERANCE
every = pytest.mark.parametrize("family", each())
# Padding behind a first turn runs through the states of a hybrid model, pruned or not.
RAGGED, LATER = ((3,), (5,), (1,)), ((3,), (3,), (3,))


def hybrid(family):
    return family_models.family(family).hybrid


def needs_static(family):
    if (static := family_models.family(family).static) is not True:
        pytest.skip(str(static))


def schedule(name, family):
    from reference_models import SCHEDULES

    return available(SCHEDULES[name], family_models.family(family))


def test_every_family_is_tested():
    assert set(family_models.FAMILIES) == set(TABLE)


@every
@pytest.mark.parametrize(("name", "attention"), [("2+4", "sdpa"), ("0+1+3", "eager")])
def test_equals_masking(family, name, attention):
    model = tiny(family, attention)
    batch, config = make_batch(model), make_config(model, schedule(name, family))
    measured = measure(model, config, batch)
    test_runtime.check(measured, batch, config)
    test_runtime.check_counts(measured.trace, batch, config)
    assert max(map(len, batch.images)) > 1, "no prompt has several images"
    assert not batch.valid.all(), "nothing is ragged"


@every
def test_packed_positions(family):
    """Equal to the reference, or refused where renumbering has no meaning."""
    model = tiny(family)
    batch = make_batch(model)
    config = make_config(model, [(0, 0.4, ("random",))], positions="packed")
    if family_models.family(family).packed:
        test_runtime.check(measure(model, config, batch, steps=3), batch, config)
    else:
        with pytest.raises(prunetune.errors.PrunetuneError, match=r"^[^\n]*packed[^\n]*$"):
            prunetune.apply(model, config)


@every
def test_the_reference_masks_nothing_when_nothing_is_dropped(family):
    test_runtime.test_the_reference_masks_nothing_when_nothing_is_dropped(family)


@every
def test_outputs_keep_their_shape(family):
    test_runtime.test_outputs_keep_their_shape(family)


@every
@torch.no_grad()
def test_a_row_alone_equals_its_row_in_the_batch(family):
    model, spec = tiny(family), family_models.family(family)
    batch, config = make_batch(model), make_config(model, schedule("0+1+3", family))
    with prunetune.apply(model, config) as handle:
        together = model(**batch.inputs).logits
        whole = handle.trace[-1]
        for row, pieces in enumerate(batch.pieces):
            alone = spec.assemble(model, [pieces])
            assert worst(model(**alone.inputs).logits[0, -1], together[row, -1]) < TOLERANCE
            for one, all_ in zip(handle.trace[-1].stages, whole.stages, strict=True):
                assert torch.equal(one.kept[0] + batch.length - alone.length, all_.kept[row])


@every
def test_keeping_everything_is_the_identity(family):
    test_runtime_removal.test_keeping_everything_is_the_identity(family, "sdpa", "original")


@every
@pytest.mark.parametrize("how", ["remove", "error in the block"])
@torch.no_grad()
def test_leaves_the_model_as_found(family, how):
    model = tiny(family)
    batch = make_batch(model)
    config = make_config(model, schedule("0+1+3", family))
    before, found = model(**batch.inputs).logits, test_runtime_removal.snapshot(model)
    try:
        test_runtime_removal.leave(how, model, config, batch)
    except ZeroDivisionError:
        assert how == "error in the block"
    assert test_runtime_removal.snapshot(model) == found
    assert torch.equal(model(**batch.inputs).logits, before)


@every
@torch.no_grad()
def test_final_states_become_the_logits_that_the_model_puts_out(family):
    model = tiny(family)
    batch = make_batch(model)
    states, _ = family_of(model).final_states(batch.inputs)
    assert torch.equal(family_of(model).logits(states), model(**batch.inputs).logits)


@every
def test_text_alone_is_untouched(family):
    model = tiny(family)
    batch = make_batch(model, ((9,), (4,), (6,)))
    with torch.no_grad():
        plain = model(**batch.inputs).logits
        with prunetune.apply(model, make_config(model, schedule("0+1+3", family))) as handle:
            assert torch.equal(model(**batch.inputs).logits, plain)
    assert not handle.trace


@every
@torch.no_grad()
def test_a_row_without_images(family):
    spec, model = family_models.family(family), tiny(family)
    batch = make_batch(model, ((3, spec.image, 4), (6,), (1, spec.other, 2)))
    with prunetune.apply(model, make_config(model, schedule("0+1+3", family))) as handle:
        logits = model(**batch.inputs).logits
        trace = handle.trace[-1]
    alive = alive_slots(tuple(batch.valid.shape), (0, trace))
    survives = batch.valid & alive[-1]
    assert [len(kept) > 0 for kept in trace.stages[-1].kept] == [True, False, True]
    assert worst(logits[survives], reference_logits(model, batch, alive)[survives]) < TOLERANCE


@every
@pytest.mark.parametrize(
    "options",
    [{"use_cache": False}, {"cache_implementation": "static"}],
    ids=["no cache", "static cache"],
)
@torch.no_grad()
def test_caches_agree(family, options):
    model = tiny(family)
    batch, config = make_batch(model), make_config(model, schedule("0+1+3", family))
    new_enough = Version(transformers.__version__) >= Version("5.23")
    if family == "paligemma" and "use_cache" in options and not new_enough:
        pytest.skip("transformers 5.17: without a cache, generated tokens join the prompt's block")
    if "cache_implementation" in options:
        needs_static(family)
    expected, _ = test_runtime_generate.pruned(model, config, batch)
    output, _ = test_runtime_generate.pruned(model, config, batch, **options)
    assert torch.equal(output.sequences, expected.sequences)
    assert worst(torch.stack(output.logits), torch.stack(expected.logits)) < TOLERANCE


@every
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@torch.no_grad()
def test_text_after_images(family, kind):
    if kind == "static":
        needs_static(family)
    model = tiny(family)
    config = make_config(model, schedule("0+1+3", family))
    chat = test_runtime_turns.Chat(model, config, test_runtime_turns.cache_of(kind, model))
    with prunetune.apply(model, config) as handle:
        chat.turn(handle, make_batch(model))
        chat.turn(handle, make_batch(model, LATER if hybrid(family) else RAGGED, seed=5))
    assert chat.gap() < TOLERANCE


@every
@torch.no_grad()
def test_a_new_image_in_a_later_turn(family):
    model, spec = tiny(family), family_models.family(family)
    config = make_config(model, schedule("0+1+3", family))
    chat = test_runtime_turns.Chat(model, config)
    with prunetune.apply(model, config) as handle:
        chat.turn(handle, make_batch(model, ((2, spec.image, 3),), seed=1))
        if not spec.later_images:
            with pytest.raises(UnsupportedModelError, match=r"\A[^\n]*later turn[^\n]*\Z"):
                chat.turn(handle, make_batch(model, ((2, spec.image, 4),), seed=2))
            return
        chat.turn(handle, make_batch(model, ((2, spec.image, 4),), seed=2))
        chat.turn(handle, make_batch(model, ((3,),), seed=3))
    assert len(chat.passes) == 2
    assert chat.gap() < TOLERANCE


NEEDLESS = [name for name in SCORERS if not SCORERS.get(name).needs]


@every
@pytest.mark.parametrize("name", ["needless", *(n for n in SCORERS if n not in NEEDLESS)])
def test_every_scorer(family, name):
    """What the tower cannot give is refused, with the reason.

    Of scorers that need nothing of a model each family has one, in turn.
    """
    if name == "needless":
        name = NEEDLESS[list(family_models.FAMILIES).index(family) % len(NEEDLESS)]
    spec, model = family_models.family(family), tiny(family)
    first = 0 if SCORERS.get(name)().usable_at(0) else 1
    config = make_config(model, [(first, 0.5, (name,)), (3, 0.2, (name,))])
    if name in spec.refused_scorers:
        with pytest.raises(UnsupportedModelError, match=r"\A[^\n]+\Z"):
            prunetune.apply(model, config)
        return
    batch = make_batch(model, spec.rows[1:2])
    measured = measure(model, config, batch, steps=2)
    test_runtime.check_counts(measured.trace, batch, config)
    assert measured.worst < TOLERANCE
    if SCORERS.get(name).needs & {"vision_attention", "vision_map", "patch_entropy"}:
        scores = measured.trace.stages[0].scores[0]
        assert all(s.unique().numel() > 1 for s in scores), "the tower told nothing"


@every
def test_scorers_see_the_layer_before_the_stage(family):
    """Where there may be one: in a hybrid model none stands behind a layer with a state."""
    if hybrid(family):
        model = tiny(family)
        ref = ModelRef(model_type=family, num_layers=len(family_models.family(family).kinds))
        config = PruningConfig(
            model=ref, stages=(Stage(layer=2, retention=0.5, scorers=[{"name": "random"}]),)
        )
        with pytest.raises(
            UnsupportedModelError, match=r"\A[^\n]*layer 2, allowed layer 0[^\n]*\Z"
        ):
            prunetune.apply(model, config)
        return
    test_runtime_taps.Probe.seen.clear()
    probe = test_runtime_taps.probe_of(family)
    test_runtime_taps.test_scorers_see_the_layer_before_the_stage(family, (0, 2, 5), "sdpa", probe)


@every
def test_half_precision(family):
    test_runtime_models.test_half_precision(family, torch.bfloat16)


@every
def test_embeddings_instead_of_ids(family):
    if (embeds := family_models.family(family).embeds) is not True:
        pytest.skip(str(embeds))
    test_runtime_removal.test_embeddings_instead_of_ids(family)


@every
@torch.no_grad()
def test_chunked_prefill(family):
    chunks = family_models.family(family).chunks
    if chunks is not True:
        pytest.skip(str(chunks))
    test_runtime_refusals.test_chunked_prefill(family, "2+4")


@every
def test_geometry_is_sound(family):
    """One entry a token; rows and columns inside their tile, no patch twice in one tile."""
    model = tiny(family)
    batch = make_batch(model)
    view, rows = family_of(model), test_runtime_geometry.token_geometries(model, batch)
    assert [[len(g) for g in row] for row in rows] == batch.images
    for geometry in (g for row in rows for g in row):
        patches = ~geometry.separator
        assert patches.any()
        assert view.has_separators or patches.all()
        assert (geometry.row < geometry.tile_rows).all()
        assert (geometry.col < geometry.tile_cols).all()
        where = torch.stack([geometry.tile, geometry.inside], 1)[patches]
        assert len(where.unique(dim=0)) == len(where)
        for name in ("y", "x"):
            assert ((getattr(geometry, name)[patches] - 0.5).abs() < 0.5).all()
