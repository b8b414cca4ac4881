"""What a config saves at the data's own shapes, measured on the embedded model."""

import pytest

from prunetune.calibration import load_calibration
from prunetune.deploy.saving import (
    answer_length,
    first_token_ms,
    measure_saving,
    price_of,
    spread_requests,
)
from prunetune.errors import ConfigError
from prunetune.models import load_model
from prunetune.presets import load_preset


@pytest.fixture(scope="module")
def tiny():
    loaded = load_model("tiny")
    depth = loaded.model.config.text_config.num_hidden_layers
    config, _ = load_preset("uniform", model_type="llava_next", num_layers=depth, keep=0.25)
    return loaded, load_calibration("tiny")[0].samples[:24], config


def test_a_saving_is_of_the_datas_own_requests(tiny):
    loaded, samples, config = tiny
    seen = []
    found = measure_saving(
        loaded, config, samples, price=3.6, requests=2, rounds=2,
        advance=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen[-1] == (12, 12)
    assert (found.requests, found.rounds) == (2, 2)
    assert found.new_tokens == answer_length(loaded.processor, samples)
    assert found.kv_mib.pruned < 0.6 * found.kv_mib.unpruned
    assert found.first_ms.pruned >= found.prefill_ms.pruned > 0
    # A million requests of t ms take t / 3.6 hours of 3.6 each... of an hour: t * 1000 / 3600.
    assert found.million_requests.pruned == pytest.approx(found.total_ms.pruned)
    assert found.faster_interval[0] <= found.faster <= found.faster_interval[1]
    chosen, lengths = spread_requests(loaded, samples, 2)
    assert len({sample.image_id for sample in chosen}) == 2
    assert found.image_tokens == sum(image for image, _ in lengths) / 2
    model = config.model.model_copy(update={"num_layers": 3})
    other = config.model_copy(update={"model": model})
    with pytest.raises(ConfigError):
        measure_saving(loaded, other, samples, rounds=1)


def test_every_config_has_its_milliseconds(tiny):
    loaded, samples, config = tiny
    found = first_token_ms(loaded, [config, config], samples[:4], rounds=1)
    assert len(found) == 2
    assert all(ms > 0 for ms in found)


@pytest.mark.parametrize(
    ("text", "price"),
    [("2.5/h", 2.5), ("2.5", 2.5), ("0.05/min", 3.0), ("60/day", 2.5), ("0.001/s", 3.6)],
)
def test_a_price_is_of_an_hour(text, price):
    assert price_of(text) == pytest.approx(price)


@pytest.mark.parametrize("text", ["", "much", "2/year", "-1/h", "nan/h", "2.5/h/h"])
def test_another_price_is_refused(text):
    with pytest.raises(ConfigError, match="--price: received"):
        price_of(text)
