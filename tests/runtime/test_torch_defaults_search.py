"""What a process has set in torch changes no number of a search; and a guard of the code."""

import ast
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from reference_models import make_config
from torch_modes import entered, every_mode, modes

import prunetune
from prunetune.calibration import CalibrationSet, encode, load_calibration
from prunetune.deploy.meter import Tally, _compare, _Run
from prunetune.measure.evaluator import Evaluator
from prunetune.measure.results import compare
from prunetune.models import load_model

PACKAGE = Path(prunetune.__file__).parent

# -- searches ------------------------------------------------------------------------------


@every_mode
def test_metrics(mode):
    dice = torch.Generator().manual_seed(3)
    tail, logits = torch.randn(4, 3, 16, generator=dice), torch.randn(4, 3, 50, generator=dice)
    references = [
        SimpleNamespace(tail=t + 0.1 * t.flip(1), log_probs=p.roll(1).log_softmax(-1))
        for t, p in zip(tail, logits[:, -1])
    ]
    answers = [[1, 2], None, [3], None]

    def measured():
        tally = Tally()
        _compare(*(_Run(t, p, t, []) for t, p in zip(tail[:2], logits[:2])), tally)
        return compare(tail, logits, references, answers, frozenset()), tally

    plain = measured()
    with entered(mode):
        assert measured() == plain


@cache
def calibration():
    found, _ = load_calibration("tiny", samples=3)
    return load_model("tiny"), CalibrationSet(tuple(found)[:3])


def trial():
    loaded, samples = calibration()
    evaluator = Evaluator(loaded, samples, deepest=1)
    stages = ((1, 0.3, ("topv", "last_query", "context_entropy")), (3, 0.1, ()))
    config = make_config(loaded.model, stages)
    ref = config.model.model_copy(update={"num_layers": len(evaluator.family.layers)})
    config = config.model_copy(update={"model": ref})
    results = [result for part in evaluator.evaluate(config) for result in part]
    return results, list(evaluator.unpruned_correct)


@pytest.mark.parametrize("mode", ["bfloat16", "device", "inference", "autocast-bfloat16"])
def test_a_trial(mode):
    """References and what is measured against them: the same to the last bit."""
    with entered(mode):
        there = trial()
    assert there == trial()


@modes
def test_encoding(mode):
    loaded, samples = calibration()
    plain = encode(loaded.processor, samples.samples)
    with entered(mode):
        again = encode(loaded.processor, samples.samples)
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert {tensor.device.type for tensor in again.values()} == {"cpu"}


# -- the code ------------------------------------------------------------------------------

FLOATING = {"zeros", "ones", "empty", "linspace", "logspace", "rand", "randn", "eye"}
PLACED = FLOATING | {"full", "tensor", "arange", "randint", "randperm", "Generator"}
# CUDA refuses these in deterministic mode (torch.use_deterministic_algorithms).
REFUSED = {"scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_", "histc",
           "kthvalue", "put_", "index_reduce", "index_reduce_"}  # fmt: skip


def fraction(node):
    """Tell whether an argument can be a float, as far as its text tells."""
    return any(
        (isinstance(part, ast.Constant) and isinstance(part.value, float))
        or (isinstance(part, ast.BinOp) and isinstance(part.op, ast.Div))
        for part in ast.walk(node)
    )


def faults(source):
    """Yield the calls in a file whose result follows what the process has set in torch."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, given = node.func.attr, {keyword.arg for keyword in node.keywords}
        if name in REFUSED:
            yield f"{node.lineno}: {name}"
        if ast.unparse(node.func.value) != "torch" or name not in PLACED:
            continue
        floating = name in FLOATING or any(map(fraction, node.args))
        if "device" not in given or (floating and "dtype" not in given):
            yield f"{node.lineno}: torch.{name}"


def test_every_tensor_that_is_made_says_where_and_in_which_format():
    found = {
        str(path.relative_to(PACKAGE)): wrong
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] not in ("cli", "review")
        and (wrong := list(faults(path.read_text("utf-8"))))
    }
    assert not found, found


@pytest.mark.parametrize(
    "planted",
    [
        "torch.arange(3)",
        "torch.zeros(3, device=d)",
        "torch.zeros(3, dtype=torch.long)",
        "torch.full((n,), 1.0 / rows, device=d)",
        "torch.full((n,), 1 / rows, device=d)",
        "torch.tensor([0.5], device=d)",
        "torch.tensor(sizes)",
        "torch.Generator()",
        "counts.scatter_add_(2, grey, one)",
    ],
)
def test_a_call_that_follows_the_defaults_would_be_noticed(planted):
    assert len(list(faults(f"def f():\n    return g({planted})"))) == 1


def test_a_call_that_says_both_is_let_through():
    good = "torch.full((n,), 1.0, dtype=t, device=d), torch.arange(3, device=d), x.new_zeros(3)"
    assert not list(faults(good))
