"""Families of fixed views from a folder: processor, search, verify, show and deployment."""

import pytest
import torch
import transformers
from cli_runner import picture, search_folder, verify_and_show
from family_models import family
from family_models._view_folders import save_views
from family_models.gemma4 import SMALL
from packaging.version import Version
from reference_models import make_config

import prunetune
from prunetune.calibration import Sample, encode
from prunetune.errors import ConfigError
from prunetune.models import load_model

OLD = Version(transformers.__version__) < Version("5.23")
NO_PIL = pytest.mark.skipif(
    OLD, reason="transformers 5.17 loads no processor of theirs without torchvision"
)
NO_PIL_EITHER = pytest.mark.skipif(
    OLD, reason="transformers 5.17 loads no processor of Gemma 4 without torchvision"
)
# Views of each of two prompts, the second with two pictures of 64 x 90 and 64 x 128 pixels.
VIEWS = {
    "internvl": [[3], [7, 3]],
    "gemma3": [[1], [1, 1]],
    "ovis2": [[7], [7, 7]],
    "idefics3": [[7], [10, 7]],
    "smolvlm": [[7], [10, 7]],
    "paligemma": [[1], [1, 1]],
}
NAMES = [
    pytest.param(n, marks=NO_PIL if n in ("idefics3", "ovis2", "smolvlm") else ()) for n in VIEWS
]
TOKENS = {"internvl": 9, "gemma3": 16, "ovis2": 9, "idefics3": 9, "smolvlm": 9, "paligemma": 25}


@pytest.fixture(scope="module", params=NAMES)
def loaded(request, tmp_path_factory):
    if request.param == "smolvlm":
        pytest.importorskip("num2words", reason="SmolVLM's processor needs it")
    return load_model(str(saved(request.param, tmp_path_factory.mktemp(request.param))))


def saved(name, folder):
    # As the small checkpoints of Gemma 4, of which every trial runs the whole model.
    return save_views(SMALL if name == "gemma4" else family(name), folder)


@torch.no_grad()
def test_a_deployment_from_the_folder(loaded):
    name = loaded.model.config.model_type
    samples = [Sample((picture(1),), "what ?"), Sample((picture(2, (90, 64)), picture(3)), "and ?")]
    inputs = encode(loaded.processor, samples)
    with prunetune.apply(loaded.model, make_config(loaded.model, "0+1+3")) as handle:
        loaded.model.generate(**inputs, max_new_tokens=3)
    [trace] = handle.trace
    assert trace.lengths == [[TOKENS[name] * n for n in row] for row in VIEWS[name]]
    assert trace.stages[-1].after == [
        sum(int(0.3 * n + 0.5) for n in lengths) for lengths in trace.lengths
    ]


@torch.no_grad()
def test_pan_and_scan_crops_are_images_of_their_own(tmp_path):
    loaded = load_model(str(saved("gemma3", tmp_path)))
    inputs = loaded.processor(
        text=["see <boi> ?"], images=[[picture(1)]], return_tensors="pt", do_pan_and_scan=True,
        pan_and_scan_min_crop_size=8, pan_and_scan_min_ratio_to_activate=1.2,
    )  # fmt: skip
    with prunetune.apply(loaded.model, make_config(loaded.model, "2+4")) as handle:
        loaded.model.generate(**inputs, max_new_tokens=2)
    assert handle.trace[-1].lengths == [[16, 16, 16]], "the picture and two crops"


@pytest.mark.parametrize(
    "name", ["internvl", "paligemma", pytest.param("gemma4", marks=NO_PIL_EITHER)]
)
def test_search_verify_and_show(name, tmp_path):
    pytest.importorskip("optuna", reason="without the extra `search` there is nothing to run")
    folder = saved(name, tmp_path / "model")
    _, path = search_folder(folder, tmp_path)
    verify_and_show(folder, path, tmp_path)


def test_a_processor_that_lacks_a_package(tmp_path, monkeypatch):
    """One line, with what is missing."""
    from transformers.models.smolvlm import processing_smolvlm

    folder = saved("smolvlm", tmp_path)
    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    with pytest.raises(ConfigError, match=r"\A[^\n]+\Z"):
        load_model(str(folder))
