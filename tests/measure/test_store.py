"""References on disk: the same numbers, whatever happens to the files."""

import copy
import os
import resource
import shutil
import subprocess
import threading
import time
from dataclasses import replace

import pytest

from prunetune.calibration import load_calibration
from prunetune.config import ModelRef, PruningConfig, Stage
from prunetune.measure import store
from prunetune.measure.evaluator import Evaluator
from prunetune.measure.store import Memos, make_room
from prunetune.models import load_model
from prunetune.scorers import SCORERS


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny"), load_calibration("tiny", samples=3)[0]


@pytest.fixture(scope="module")
def config():
    scorers = tuple(SCORERS.get(n)(name=n) for n in ("cls_attention", "last_query", "topv"))
    stages = (Stage(layer=1, retention=0.3, scorers=scorers), Stage(layer=9, retention=0.1))
    return PruningConfig(model=ModelRef(model_type="llava_next", num_layers=16), stages=stages)


def results(tiny, config, cache, **options):
    evaluator = Evaluator(*tiny, deepest=1, batch_size=2, cache=cache, **options)
    return [result for batch in evaluator.evaluate(config) for _, result in batch]


@pytest.fixture(scope="module")
def expected(tiny, config):
    return results(tiny, config, None)


@pytest.fixture
def filled(tiny, config, tmp_path, expected):
    assert results(tiny, config, tmp_path) == expected
    return sorted(tmp_path.glob("*/*.safetensors"))


def halved(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def emptied(path):
    path.write_bytes(b"")


def without_sums(path):
    path.with_suffix(".json").unlink()


def sums_halved(path):
    halved(path.with_suffix(".json"))


def of_another_sample(path):
    """Both files whole, but what they hold is another sample's: a copy by hand."""
    other = next(p for p in sorted(path.parent.glob("*.safetensors")) if p != path)
    shutil.copy(other, path)


def test_a_cache_is_read_and_not_made_again(tiny, config, tmp_path, filled, expected):
    assert len(filled) == 3
    written = [file.stat().st_mtime_ns for file in filled]
    assert results(tiny, config, tmp_path) == expected
    assert [file.stat().st_mtime_ns for file in filled] == written
    assert not list(tmp_path.glob("*/.*"))


@pytest.mark.parametrize(
    "damage", [halved, flipped, emptied, without_sums, sums_halved, of_another_sample]
)
def test_a_damaged_file_is_computed_again(tiny, config, tmp_path, filled, expected, damage, caplog):
    before = filled[0].read_bytes()
    damage(filled[0])
    assert results(tiny, config, tmp_path) == expected
    assert filled[0].read_bytes() == before
    told = [record.message for record in caplog.records if "damaged" in record.message]
    assert len(told) == (damage is not without_sums)


def test_damage_would_be_seen_in_the_numbers(tiny, config, tmp_path, filled, expected, monkeypatch):
    """The twin: without the check, the tests above turn red."""
    monkeypatch.setattr(store.DiskStore, "_intact", lambda self, path: True)
    of_another_sample(filled[0])
    assert results(tiny, config, tmp_path) != expected


def said(caplog, text):
    return sum(text in record.message for record in caplog.records)


def test_a_cache_that_cannot_be_made_is_done_without(tiny, config, tmp_path, expected, caplog):
    (tmp_path / "file").write_text("in the way")
    assert results(tiny, config, tmp_path / "file" / "cache") == expected
    assert said(caplog, "cannot be written") == 1


def test_a_read_only_cache_is_read(tiny, config, tmp_path, filled, expected, caplog, monkeypatch):
    """Whole files are used, what is damaged is kept in memory; root could write anywhere."""

    def refused(path, content):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store, "write_atomically", refused)
    assert results(tiny, config, tmp_path) == expected
    assert said(caplog, "cannot be written") == 0
    halved(filled[0])
    assert results(tiny, config, tmp_path) == expected
    assert said(caplog, "cannot be written (Permission denied)") == 1
    assert filled[1].exists()


@pytest.fixture
def small_files():
    """Writing beyond 200 kB of a file fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_files_that_cannot_be_finished(tiny, config, tmp_path, expected, caplog, small_files):
    assert results(tiny, config, tmp_path) == expected
    assert said(caplog, "cannot be written (File too large)") == 1
    # Nothing is left that could be taken for a reference.
    assert not [path for path in tmp_path.glob("*/*") if path.is_file()]


@pytest.mark.skipif(os.getuid() != 0, reason="mounting needs root")
def test_a_full_disk(tiny, config, tmp_path, expected, caplog):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.call(mount, stderr=subprocess.DEVNULL):
        pytest.skip("tmpfs cannot be mounted here")
    try:
        assert results(tiny, config, disk) == expected
        assert said(caplog, "No space left on device") == 1
        whole = list(disk.glob("*/*.safetensors"))
        assert 0 < len(whole) < 3
        # What found room is whole.
        assert results(tiny, config, disk) == expected
        assert said(caplog, "damaged") == 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_two_searches_fill_one_cache(tiny, config, tmp_path, expected, caplog):
    together, found = threading.Barrier(2), []

    def search(loaded):
        together.wait()
        found.append(results((loaded, tiny[1]), config, tmp_path))

    models = [replace(tiny[0], model=copy.deepcopy(tiny[0].model)) for _ in range(2)]
    threads = [threading.Thread(target=search, args=(loaded,)) for loaded in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected, expected]
    assert said(caplog, "damaged") == 0
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 3
    assert not list(tmp_path.glob("*/.*"))


def test_a_cache_never_grows_over_its_limit(tiny, config, tmp_path, filled, expected, caplog):
    size = sum(path.stat().st_size for path in filled)
    other = tmp_path / "other"
    assert results(tiny, config, other, cache_limit=int(0.7 * size)) == expected
    assert 0 < sum(path.stat().st_size for path in other.glob("*/*")) <= 0.7 * size
    assert said(caplog, "--cache-limit") == 1


def test_what_will_not_fit_is_said_before_it_is_computed(tiny, tmp_path, filled, caplog):
    loaded, samples = tiny
    size = sum(path.stat().st_size for path in filled)
    told = []

    def progress(done):
        told.append(said(caplog, "raise --cache-limit to 1, or use fewer --samples"))

    Evaluator(loaded, samples, deepest=2, cache=tmp_path / "a", cache_limit=100, progress=progress)
    assert told == [1] * len(samples)
    # The twin: what fits is not mentioned.
    caplog.clear()
    told.clear()
    Evaluator(loaded, samples, deepest=2, cache=tmp_path / "b", cache_limit=2 * size)
    assert said(caplog, "--cache-limit") == 0


def test_small_references_stay_in_memory(tiny, config, tmp_path, expected):
    assert results(tiny, config, tmp_path / "a", in_memory=1 << 30) == expected
    assert not (tmp_path / "a").exists()


def test_a_small_first_sample_does_not_keep_large_ones_in_memory(tiny, config, tmp_path, expected):
    loaded, samples = tiny
    evaluator = Evaluator(loaded, samples, deepest=1)
    sizes = [evaluator.full.get(index).nbytes for index in range(len(samples))]
    order = sorted(range(len(samples)), key=sizes.__getitem__)
    assert len(samples) * min(sizes) < sum(sizes)
    sorted_ = loaded, replace(samples, samples=tuple(samples.samples[i] for i in order))
    limit = len(samples) * min(sizes)
    found = results(sorted_, config, tmp_path / "a", in_memory=limit)
    assert {i: result.correct for i, result in zip(order, found)} == {
        i: result.correct for i, result in enumerate(expected)
    }
    assert [r.gap for r in found] == pytest.approx([expected[i].gap for i in order], abs=1e-5)
    assert len(list(tmp_path.glob("a/*/*.safetensors"))) == len(samples)
    # The twin: with room for all of them none is written.
    results(sorted_, config, tmp_path / "b", in_memory=sum(sizes))
    assert not (tmp_path / "b").exists()


def test_memos_are_bounded():
    import torch

    memos = Memos(limit=100)
    first, second = memos.of(0, 0), memos.of(1, 0)
    first["a"] = torch.zeros(20)
    second["b"] = torch.zeros(20)
    second["c"] = torch.zeros(5)
    assert set(first) == {"a"}
    assert set(second) == {"c"}
    assert memos.of(0, 0) is first


def test_only_caches_are_evicted_the_least_recently_used_first(tmp_path):
    old, new, foreign = tmp_path / ("a" * 32), tmp_path / ("b" * 32), tmp_path / "photos"
    for k, folder in enumerate((old, new, foreign)):
        folder.mkdir()
        (folder / "x.bin").write_bytes(b"0" * 1000)
        os.utime(folder, (k, k))
    assert make_room(tmp_path, tmp_path / ("c" * 32), 500, 1600)
    assert not old.exists()
    assert new.exists()
    # What would not fit anyway costs nobody anything.
    assert not make_room(tmp_path, tmp_path / ("c" * 32), 500, 400)
    assert new.exists()
    # The twin: what is no cache stays, however little room there is.
    assert make_room(tmp_path, tmp_path / ("c" * 32), 500, 500)
    assert not new.exists()
    assert foreign.exists()


def test_a_cache_in_use_is_not_evicted(tiny, config, tmp_path, filled, expected, caplog):
    (folder,) = {path.parent for path in filled}
    size = sum(path.stat().st_size for path in folder.iterdir())
    loaded, samples = tiny
    other = (loaded, replace(samples, samples=samples.samples[:1]))
    for used, kept in ((time.time(), True), (time.time() - 3600, False)):
        os.utime(folder, (used, used))
        # Another depth is another cache, as a search's two splits have.
        Evaluator(*other, deepest=2, cache=tmp_path, cache_limit=size)
        assert folder.exists() == kept
        assert said(caplog, "--cache-limit") == kept
        caplog.clear()
    # Reading marks a cache as used.
    assert results(tiny, config, tmp_path) == expected
    os.utime(folder, (1, 1))
    assert results(tiny, config, tmp_path) == expected
    assert time.time() - folder.stat().st_mtime < 600


def test_what_a_killed_writer_left_is_removed(tiny, config, tmp_path, filled, expected):
    old, new = (filled[0].parent / f".x.safetensors.{k}" for k in "ab")
    for path in (old, new):
        path.write_bytes(b"0")
    os.utime(old, (1, 1))
    assert results(tiny, config, tmp_path) == expected
    assert not old.exists()
    # The twin: another process may be writing it now.
    assert new.exists()


def test_memory_does_not_take_what_the_disk_could_not(
    tiny, config, tmp_path, expected, caplog, monkeypatch
):
    (tmp_path / "file").write_bytes(b"")
    assert results(tiny, config, tmp_path / "file") == expected
    assert said(caplog, "stay in memory") == 1
    caplog.clear()
    monkeypatch.setattr(store, "_MOST_IN_MEMORY", 100)
    assert results(tiny, config, tmp_path / "file") == expected
    assert said(caplog, "computed again in every trial") == 1


def test_references_of_other_code_are_other_references(tiny, monkeypatch):
    key = store.store_key(tiny[0].model, "f")
    assert store.store_key(tiny[0].model, "f") == key
    monkeypatch.setattr(store, "_code_digest", lambda: "corrected")
    assert store.store_key(tiny[0].model, "f") != key
