"""Hugging Face data sets."""

import pytest
from sets import encoded, everything, picture, refused, write_set

from prunetune.calibration import (
    load_calibration,
)
from prunetune.errors import DataError


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """``datasets`` with its cache under tmp_path, and a table of four rows on two pictures."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    columns = {
        "picture": [encoded(picture(i // 2)) for i in range(4)],
        "ask": [f"q{i}" for i in range(4)],
        "reply": [f"a{i}" for i in range(4)],
    }
    features = datasets.Features(
        picture=datasets.Image(), ask=datasets.Value("string"), reply=datasets.Value("string")
    )
    return datasets.Dataset.from_dict(columns, features=features)


def test_hf_reads_parquet_and_saved_tables(hub, tmp_path):
    (tmp_path / "p").mkdir()
    hub.to_parquet(tmp_path / "p" / "train.parquet")
    hub.save_to_disk(tmp_path / "saved")
    for folder in ("p", "saved"):
        calibration, held_out = load_calibration(
            f"hf:{tmp_path / folder}?image=picture&question=ask&answer=reply", held_out=0.5
        )
        samples = [*calibration, *held_out]
        assert {(s.question, s.answer) for s in samples} == {(f"q{i}", f"a{i}") for i in range(4)}
        assert len(calibration) == len(held_out) == 2, "rows that repeat a picture stay together"
        for sample in samples:
            assert sample.images[0].tobytes() == picture(int(sample.question[1]) // 2).tobytes()


def test_hf_reads_an_image_folder_and_named_splits(hub, tmp_path):
    import datasets

    folder = write_set(tmp_path / "d", images=2, questions=1)
    assert {s.question for s in everything(f"hf:{folder}?split=train")} == {"q0?"}
    other = hub.select([2, 3])
    datasets.DatasetDict(a=hub.select([0, 1]), b=other).save_to_disk(tmp_path / "two")
    spec = f"hf:{tmp_path / 'two'}?split=a&held_out_split=b&question=ask"
    assert [len(side) for side in load_calibration(spec)] == [2, 2]
    refused(f"hf:{tmp_path / 'two'}?question=ask", "a, b", "?split=")
    refused(f"hf:{tmp_path / 'two'}?split=c&question=ask", "'c'", "a, b")
    same = f"hf:{tmp_path / 'two'}?split=a&held_out_split=a&question=ask"
    refused(same, "both calibration and held_out")


def test_hf_bad_columns_options_and_pictures(hub, tmp_path):
    hub.save_to_disk(tmp_path / "saved")
    spec = f"hf:{tmp_path / 'saved'}"
    refused(f"{spec}?question=nope", "'nope'", "ask")
    refused(f"{spec}?image=ask", "'ask'", "picture columns: picture")
    refused(f"{spec}?question=ask&quest=1", "'quest'", "allowed: split")
    refused(spec, "row 0", "no question")
    whole = encoded(picture(0, (64, 64)), "JPEG")["bytes"]
    bad = hub.select(range(3)).to_dict() | {
        "picture": [{"bytes": whole[:300]}, None, {"bytes": whole}]
    }
    hub.from_dict(bad, features=hub.features).save_to_disk(tmp_path / "bad")
    spec = f"hf:{tmp_path / 'bad'}?question=ask"
    kept = everything(spec, skip_bad=True)
    assert [s.question for s in kept] == ["q2"]
    assert kept.skipped == 2
    refused(spec, "row 1", "no picture", "--skip-bad")
    assert any("row 0" in name for name in kept.skipped_names)


def test_hf_runs_no_code_of_a_data_set(hub, tmp_path):
    folder = tmp_path / "script"
    folder.mkdir()
    (folder / "script.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    refused(f"hf:{folder}", "cannot be loaded", "check the folder")
    hub.to_parquet(folder / "train.parquet")
    with pytest.raises(DataError):
        everything(f"hf:{folder}?question=ask")
    assert not (tmp_path / "ran").exists()


def test_hf_hub_out_of_reach(monkeypatch):
    import huggingface_hub

    def fail(*args, **kwargs):
        raise ConnectionError("name or service not known\nsecond line")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
    refused("hf:owner/name", "cannot be reached", "hf download --repo-type dataset owner/name")
    for name in ("no such id!", "a/../b", "x" * 5000 + "/..", "~nobody/x/y"):
        refused(f"hf:{name}", "neither a folder nor a hub id")
    refused("hf:", "names nothing")
