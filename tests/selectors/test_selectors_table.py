"""What selectors do with views and with many patches, and what their table promises."""

import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from selector_naive import image
from test_devices import named_devices
from test_selectors import EVERY, PAIRWISE, is_a_choice, ranges
from torch.utils._python_dispatch import TorchDispatchMode

import prunetune
from prunetune.errors import ConfigError
from prunetune.registry import Tunable
from prunetune.selectors import SELECTORS, SelectContext, Selector, base, base_covering, cover
from prunetune.space.units import decode_field, encode_field
from prunetune.tokens import ImageGeometry, grid_geometry

torch.set_num_threads(1)

# -- views ----------------------------------------------------------------------------------------


def unequal() -> ImageGeometry:
    parts = [grid_geometry(*size) for size in ((2, 2), (4, 5), (6, 6))]
    whole = {f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(ImageGeometry)}
    whole["tile"] = torch.tensor([2] * 4 + [0] * 20 + [1] * 36)
    return ImageGeometry(**whole)


@pytest.mark.parametrize("name", EVERY)
def test_a_view_gets_its_share_and_is_chosen_in_alone(name):
    """As if it were an image, but for the mean, which stays the image's."""
    ctx, selector = image(place=unequal()), SELECTORS.get(name)(scope="view")
    order = selector.order(ctx, 30)
    assert torch.bincount(ctx.geometry.tile[order]).tolist() == [10, 18, 2]
    alone = SELECTORS.get(name)()
    for tile in range(3):
        here = (ctx.geometry.tile == tile).nonzero().flatten()
        view = replace(ctx.select(here), mean=ctx.features.mean(0))
        got = order[ctx.geometry.tile[order] == tile]
        assert torch.equal(got, here[alone.order(view, len(got))])


@pytest.mark.parametrize("name", PAIRWISE)
def test_many_patches_are_packed_by_views(name, monkeypatch):
    monkeypatch.setattr(base, "LARGEST", 30)
    sizes = []
    monkeypatch.setattr(
        SELECTORS.get(name),
        "choose",
        lambda self, ctx, count: sizes.append(len(ctx)) or torch.arange(count),
    )
    order = SELECTORS.get(name)().order(image(place=unequal()), 30)
    is_a_choice(order, 60, 30)
    assert sizes == [20, 18, 22]


MEASURE = """
import torch
from contexts import tiled
from selector_naive import image
from prunetune.selectors import SELECTORS, base
torch.set_num_threads(1)
def memory(field):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(field)) // 1024
def growth(name, tiles, side, count, **settings):
    ctx = image(place=tiled(tiles, side, side), width=64)
    selector = SELECTORS.get(name)(**settings)
    open("/proc/self/clear_refs", "w").write("5")
    before = memory("VmRSS")
    selector.order(ctx, count)
    return memory("VmHWM") - before
found = []
for name in ("dpp", "maxmin", "distinct"):
    growth(name, 2, 4, 3)
    found.append(growth(name, 2, 64, 8170 if name == "distinct" else 40))
growth("cover", 2, 4, 3)
found.append(growth("cover", 2, 64, 9, text=0.3, kernel="softmax"))
base.LARGEST = 1 << 20
print(max(found), growth("maxmin", 2, 64, 3))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_scratch_memory_is_bounded():
    """8,192 patches; and in one piece, to show that the measure can fail."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE],
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    packed, whole = map(int, done.stdout.split())
    assert packed < 256
    assert whole > 256


class Waits(TorchDispatchMode):
    """Counts how often the host asks for a value, which on a GPU is a wait."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def waits(selector: Selector, count: int) -> int:
    ctx = image()
    with Waits() as mode:
        selector.order(ctx, count)
    return mode.count


@pytest.mark.parametrize("name", EVERY)
def test_no_step_waits_for_the_device(name, monkeypatch):
    """The twin: lazy coverage, for the host alone, shows that the measure can fail."""
    selector = SELECTORS.get(name)()
    assert waits(selector, 30) == waits(selector, 5)
    monkeypatch.setattr(cover, "most_covering", base_covering.lazily)
    assert (waits(selector, 30) == waits(selector, 5)) is (name != "cover")


# -- the table ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_describes_itself_and_round_trips(name):
    kind = SELECTORS.get(name)
    assert issubclass(kind, Selector)
    assert kind().name == name
    assert kind.summary
    assert kind.model_validate_json(kind().model_dump_json(), strict=True) == kind()
    with pytest.raises(ValidationError):
        kind(sigma=3.0)


@pytest.mark.parametrize("name", EVERY)
def test_tunables_lie_on_few_levels_that_are_allowed(name):
    kind = SELECTORS.get(name)
    for field, mark in ranges(kind).items():
        assert mark.shown
        assert 2 <= len(mark.values()) <= 8
        assert len(set(mark.values())) == len(mark.values())
        for value in mark.values():
            kind(**{field: value})
        assert getattr(kind(), field) in mark.values()


def test_a_level_holds_an_equal_part_of_the_unit():
    mark = Tunable(0.05, 1.903, log=True, levels=8)
    assert mark.values() == (0.05, 0.08409, 0.1414, 0.2379, 0.4, 0.6728, 1.132, 1.903)
    assert [mark.decode(u) for u in (0.0, 0.1249, 0.1251, 1.0)] == [0.05, 0.05, 0.08409, 1.903]
    assert Tunable(0.0, 1.0).values() == ()
    assert Tunable(choices=("a", "b")).values() == ("a", "b")


@pytest.mark.parametrize("wrong", [{"tau": 0.0}, {"tau": -1.0}, {"scope": "tile"}, {"kernel": "x"}])
def test_bad_fields_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        SELECTORS.get("cover")(**wrong)


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match=r"unknown selector 'maxmim'.*did you mean 'maxmin'"):
        SELECTORS.get("maxmim")
    assert SELECTORS.group == "prunetune.selectors"


def test_no_device_is_named():
    files = list((Path(prunetune.__file__).parent / "selectors").glob("*.py"))
    assert len(files) > 8
    assert all(named_devices(f.read_text("utf-8")) == [] for f in files)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", EVERY)
def test_a_gpu_takes_the_same(name):
    ctx, selector = image(12, 12), SELECTORS.get(name)()
    there = SelectContext(
        ctx.features.cuda(), ctx.scores.cuda(), ctx.geometry.to("cuda"), text=ctx.text.cuda()
    )
    assert torch.equal(selector.keep(there, 40).cpu(), selector.keep(ctx, 40))


@pytest.mark.parametrize("name", EVERY)
def test_a_search_finds_every_level_again(name):
    for mark in ranges(SELECTORS.get(name)).values():
        for value in mark.values():
            unit = encode_field(mark, value)
            assert decode_field(mark, unit, whole=False) == value
