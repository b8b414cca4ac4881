"""Scorers and restorers run where their inputs are: no device is assumed or named."""

import ast
from pathlib import Path
from typing import Literal

import pytest
import torch
from contexts import context, mapped

import prunetune
from prunetune.restorers import RESTORERS, Restorer
from prunetune.scorers import SCORERS, ScoreContext, Scorer
from prunetune.tokens import grid_geometry

torch.set_num_threads(1)
PARTS = [("scorer", name) for name in SCORERS] + [("restorer", name) for name in RESTORERS]


def inputs(kind, device="cpu"):
    """Return what a scorer (a context) or a restorer is given."""
    if kind == "scorer":
        return (mapped(context(), *[lambda t: t.to(device)] * 2),)
    scores = torch.rand(144, generator=torch.Generator().manual_seed(0))
    states = torch.arange(288.0).view(144, 2)
    return scores.to(device), states.to(device), grid_geometry(12, 12).to(device)


def results(kind, part, given):
    """Return everything a scorer or restorer gives."""
    if kind == "scorer":
        return [part.score(*given), part.importance(*given)]
    scores, states, place = given
    kept = part.keep(scores, 60, place)
    new = part.blend(states, scores, kept, place, scores + 1)
    return [kept] if new is None else [kept, new]


def check_elsewhere(kind, part):
    """Compare with a run under another default device, where tensors made without one land."""
    given = inputs(kind)
    expected = results(kind, part, given)
    with torch.device("meta"):
        got = results(kind, part, given)
    assert [g.device.type for g in got] == ["cpu"] * len(expected)
    assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_nothing_is_made_on_the_default_device(kind, name):
    check_elsewhere(kind, (SCORERS if kind == "scorer" else RESTORERS).get(name)())


class HomeBound(Scorer):
    name: Literal["home_bound"] = "home_bound"

    def score(self, ctx: ScoreContext) -> torch.Tensor:
        return torch.arange(float(len(ctx)))


class HomeBoundToo(Restorer):
    name: Literal["home_bound_too"] = "home_bound_too"

    def keep(self, scores, count, geometry):
        return scores.argsort()[torch.arange(count)]


@pytest.mark.parametrize(("kind", "part"), [("scorer", HomeBound()), ("restorer", HomeBoundToo())])
def test_a_tensor_without_a_device_would_be_noticed(kind, part):
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        check_elsewhere(kind, part)


def named_devices(source):
    """Return the devices that source code names, and its moves to one."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and str(node.value).split(":")[0] in ("cpu", "cuda"):
            found.append(node.value)
        if isinstance(node, ast.Attribute) and node.attr in ("cpu", "cuda"):
            found.append(node.attr)
    return found


def test_no_device_is_named():
    package = Path(prunetune.__file__).parent
    # Not tokens.py: geometries are made on the CPU, whatever the process's default device is.
    rooms = ("scorers", "selectors", "restorers")
    files = [file for room in rooms for file in package.glob(f"{room}/*.py")]
    assert len(files) > 10
    assert {f.name: named_devices(f.read_text("utf-8")) for f in files} == {
        f.name: [] for f in files
    }


@pytest.mark.parametrize("source", ["x.to('cuda:0')", "x.cpu()", "torch.ones(2, device='cpu')"])
def test_a_named_device_would_be_noticed(source):
    assert named_devices(source)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_a_gpu_gives_the_same(kind, name):
    part = (SCORERS if kind == "scorer" else RESTORERS).get(name)()
    here, there = (results(kind, part, inputs(kind, device)) for device in ("cpu", "cuda"))
    for one, two in zip(here, there, strict=True):
        torch.testing.assert_close(one, two.cpu(), rtol=1e-4, atol=1e-5)
