"""References on disk: the same numbers, whatever happens to the files."""

import os

import pytest

from prunetune.calibration import load_calibration
from prunetune.config import ModelRef, PruningConfig, Stage
from prunetune.models import load_model
from prunetune.scorers import SCORERS
from prunetune.search.objective import Evaluator
from prunetune.search.store import make_room


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny"), load_calibration("tiny", samples=4)[0]


@pytest.fixture(scope="module")
def config():
    scorers = tuple(SCORERS.get(n)(name=n) for n in ("cls_attention", "last_query", "topv"))
    stages = (Stage(layer=1, retention=0.3, scorers=scorers), Stage(layer=9, retention=0.1))
    return PruningConfig(model=ModelRef(model_type="llava_next", num_layers=16), stages=stages)


def results(tiny, config, cache):
    evaluator = Evaluator(*tiny, deepest=2, batch_size=2, cache=cache)
    return [result for batch in evaluator.evaluate(config) for _, result in batch]


def test_a_cache_changes_no_number_even_when_damaged(tiny, config, tmp_path):
    expected = results(tiny, config, None)
    assert results(tiny, config, tmp_path) == expected
    files = sorted(tmp_path.glob("*/*.safetensors"))
    assert len(files) == 4
    written = [file.stat().st_mtime_ns for file in files]
    assert results(tiny, config, tmp_path) == expected
    assert [file.stat().st_mtime_ns for file in files] == written  # read, not made again
    files[0].write_bytes(files[0].read_bytes()[: files[0].stat().st_size // 2])
    damaged = bytearray(files[1].read_bytes())
    damaged[-100] ^= 1
    files[1].write_bytes(damaged)
    assert results(tiny, config, tmp_path) == expected
    assert files[0].stat().st_mtime_ns != written[0]


def test_a_cache_that_cannot_be_written_is_done_without(tiny, config, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    expected = results(tiny, config, None)
    assert results(tiny, config, tmp_path / "file" / "cache") == expected
    assert sum("cannot be written" in record.message for record in caplog.records) == 1


def test_only_caches_are_evicted_the_least_recently_used_first(tmp_path):
    old, new, foreign = tmp_path / ("a" * 32), tmp_path / ("b" * 32), tmp_path / "photos"
    for k, folder in enumerate((old, new, foreign)):
        folder.mkdir()
        (folder / "x.bin").write_bytes(b"0" * 1000)
        os.utime(folder, (k, k))
    make_room(tmp_path, tmp_path / ("c" * 32), 500, 1600)
    assert not old.exists()
    assert new.exists()
    # The twin: what is no cache stays, however little room there is.
    make_room(tmp_path, tmp_path / ("c" * 32), 500, 0)
    assert not new.exists()
    assert foreign.exists()
