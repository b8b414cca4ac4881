"""The model of real parts, on stand-ins: what is trained, stored, merged, and when it ends."""

import argparse

import numpy as np
import pytest
import torch

from benchmarks.real_parts import adapters, language, stand_in
from benchmarks.real_parts.align import Aligner, shown
from benchmarks.real_parts.composites import (
    CORNERS,
    compose,
    lessons,
    samples,
    sources_of,
    write_sets,
)
from benchmarks.real_parts.cutouts import part, read_sources
from benchmarks.real_parts.train import align, stopped, train
from benchmarks.real_parts.trainee import Trainee
from prunetune.calibration import load_calibration
from prunetune.models import load_model

OPTIONS = {"questions": 4, "clear": 15.0, "hours": 6.0, "warm": 1, "look_minutes": 20.0}
OPTIONS |= {"align": 16}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    stand_in.write_model(folder)
    return folder


def run(parts, folder, *stops):
    """Train up to each number of steps in turn, from the stored state, as repeated commands do."""
    folder.mkdir(exist_ok=True)
    (folder / "parts").symlink_to(parts)
    for steps in stops:
        trainee = Trainee(folder, rate=1e-2)
        assert trainee.resume() == (folder / "state.safetensors").exists()
        train(trainee, sources_of(None), argparse.Namespace(steps=steps, **OPTIONS))
        trainee.store()
    return trainee


def test_a_run_that_was_cut_ends_where_a_whole_one_does(parts, tmp_path):
    whole, cut = run(parts, tmp_path / "a", 3), run(parts, tmp_path / "b", 1, 3)
    assert whole.progress["step"] == cut.progress["step"] == 3
    for name, weight in whole.moves.items():
        torch.testing.assert_close(weight, cut.moves[name], rtol=0, atol=0)
    other = run(parts, tmp_path / "c", 2)
    assert any(not torch.equal(w, other.moves[n]) for n, w in whole.moves.items())


def test_only_projector_and_updates_move_and_merging_changes_nothing(parts, tmp_path):
    trainee = run(parts, tmp_path / "a", 2)
    model = load_model(str(parts)).model
    before, after = (dict(m.named_parameters()) for m in (model, trainee.model))
    assert {n for n in trainee.moves if n in before} == {
        n for n in before if "multi_modal_projector" in n
    }
    inputs = trainee.batch(lessons([5], sources_of(None)["train"], trainee.size, 2))
    with torch.no_grad():
        unmerged = trainee.model(**inputs).logits
        trainee.finish()
        merged = load_model(str(tmp_path / "a" / "model")).model
        torch.testing.assert_close(merged(**inputs).logits, unmerged)
        assert not torch.allclose(model(**inputs).logits, unmerged)
    frozen = [n for n in before if n in after and n not in trainee.moves]
    assert all(torch.equal(before[n], after[n]) for n in frozen)


def test_updates_are_nothing_at_first():
    layers = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(6, 4, bias=False)})
    weight, x = layers["q_proj"].weight.detach().clone(), torch.randn(3, 6)
    adapters.attach(layers)
    torch.testing.assert_close(layers["q_proj"](x), x @ weight.T)


def test_labels_are_the_answers_and_their_ends(parts, tmp_path):
    (tmp_path / "parts").symlink_to(parts)
    trainee = Trainee(tmp_path, 1e-3)
    asked = lessons([6], sources_of(None)["train"], trainee.size, 6)
    inputs = trainee.batch(asked)
    for row, ids, (_, questions) in zip(inputs["labels"], inputs["input_ids"], asked, strict=True):
        said = trainee.processor.tokenizer.decode(row[row >= 0])
        assert said == "".join(f"{question.answer}<|im_end|>" for question in questions)
        assert torch.equal(row[row >= 0], ids[row >= 0])
    assert len({len(questions) for _, questions in asked}) > 1, "no row is padded"


def test_what_is_learned_is_what_the_models_own_loss_says(parts, tmp_path):
    (tmp_path / "parts").symlink_to(parts)
    trainee = Trainee(tmp_path, 1e-3)
    inputs = trainee.batch(lessons([8], sources_of(None)["train"], trainee.size, 3))
    with torch.no_grad():
        expected = trainee.model(**inputs).loss
        said, targets = trainee.said(inputs)
    torch.testing.assert_close(torch.nn.functional.cross_entropy(said, targets), expected)


def test_an_answer_is_right_only_as_a_whole(parts, tmp_path):
    (tmp_path / "parts").symlink_to(parts)
    trainee = Trainee(tmp_path, 1e-3)
    asked = samples([9], sources_of(None)["train"], trainee.size, 6)

    def said(inputs):
        targets = inputs["labels"][:, 1:]
        targets = targets[targets >= 0]
        logits = torch.nn.functional.one_hot(targets, 49_152).float()
        logits[-1] = 0.0  # the end of the last answer of every batch
        return logits, targets

    trainee.said = said
    assert trainee.right(asked, blind=False) == [True, True, True, False, True, False]


@pytest.mark.parametrize(
    ("ahead", "half", "hours", "why"),
    [(30, 5, 1, "clearly"), (30, 20, 1, None), (14, 0, 1, None), (0, 5, 6, "out of CPU")],
)
def test_the_stop_rule(ahead, half, hours, why):
    progress = {"looks": [{"ahead": ahead, "half": half}], "cpu_seconds": 3600 * hours}
    said = stopped(progress, clear=15, hours=6)
    assert said is None if why is None else why in said
    assert stopped({"looks": [], "cpu_seconds": 0}, clear=15, hours=6) is None


def told(picture, question):
    """The answer, from the corners and the question's last words alone."""
    found, words = picture.corners, question.text.rstrip("?").split()
    if question.type == "where":
        return next(corner for corner in CORNERS if found.get(corner) == words[-1])
    if question.type == "exists":
        return "yes" if words[-1] in found.values() else "no"
    return found[" ".join(words[-2:])] if question.type == "what" else str(len(found))


def test_composites_are_seeded_and_their_answers_true():
    sources = sources_of(None)["train"]
    one, again = (samples([7], sources, 56, 24) for _ in range(2))
    assert [q for _, q in one] == [q for _, q in again]
    assert all(question.answer == told(*sample) for sample in one for question in sample[1:])
    assert {q.type for _, q in one} == {"what", "where", "count", "exists"}


def test_objects_stand_in_the_corners_that_are_told():
    sources = sources_of(None)["train"]
    plain = stand_in.Sources(
        sources.objects, [scene.point(lambda _: 0) for scene in sources.backgrounds]
    )
    picture = compose(np.random.default_rng(3), plain, 56)
    pixels = np.asarray(picture.image).max(-1)
    halves = {"top": slice(0, 28), "bottom": slice(28, 56), "left": slice(0, 28)}
    halves["right"] = halves["bottom"]
    for corner in CORNERS:
        row, column = corner.split()
        assert pixels[halves[row], halves[column]].any() == (corner in picture.corners)


def test_sides_share_nothing():
    names = list(range(11))
    kept, unseen = part(names, "train"), part(names, "held_out")
    assert sorted(kept + unseen) == names
    assert unseen == [1, 5, 9]


def test_a_token_is_told_what_covers_its_place():
    sources = sources_of(None)["train"]
    classes, told = [*sources.objects, None], 0
    for seed in range(20):
        picture = compose(np.random.default_rng(seed), sources, 56)
        found = [classes[index] for index in shown(picture, classes[:-1], 2)]
        # A small object covers less of a token's place than counts.
        assert all(
            name in {picture.corners.get(corner), None}
            for corner, name in zip(CORNERS, found, strict=True)
        )
        told += sum(name is not None for name in found)
    assert told >= 20


def test_alignment_brings_tokens_near_their_words_and_moves_the_projector_alone(parts, tmp_path):
    (tmp_path / "parts").symlink_to(parts)
    trainee = Trainee(tmp_path, 1e-2)
    source = sources_of(None)["train"]
    aligner = Aligner(trainee.model.model, trainee.processor, list(source.objects))
    unseen = [compose(np.random.default_rng([99, i]), source, trainee.size) for i in range(8)]
    before = {name: weight.detach().clone() for name, weight in trainee.moves.items()}
    with torch.no_grad():
        far = float(aligner.loss(unseen))
    align(trainee, source, 320)
    with torch.no_grad():
        near = float(aligner.loss(unseen))
    assert near < far / 2
    moved = {
        name for name, weight in trainee.moves.items() if not torch.equal(weight, before[name])
    }
    assert moved == {name for name in before if "multi_modal_projector" in name}
    align(trainee, source, 320)
    with torch.no_grad():
        assert float(aligner.loss(unseen)) == near, "done once, whatever the command says again"


def test_a_folder_without_stamps_is_refused_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"no picture in usr/share.*unpacked packages"):
        read_sources(tmp_path, "train")


def test_the_sets_are_read_as_any_others(tmp_path):
    write_sets(tmp_path, sources_of(None), 56)
    calibration, held_out = load_calibration(str(tmp_path))
    assert len(calibration) >= 100
    assert len(held_out) >= 300


def test_rows_that_a_file_interleaves_are_turned_back():
    # Two heads of four rows: the file has the rotated halves in turns.
    weight = np.array([[0], [2], [1], [3], [4], [6], [5], [7]])
    assert language.turned(weight, 2)[:, 0].tolist() == list(range(8))
