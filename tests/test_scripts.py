"""Every script of benchmarks/ and training/ runs, at its smallest size: none rots unseen."""

import ast
import json
import shutil
from pathlib import Path

import pytest
from forge import ROOT, Forge

from prunetune.vllm.jobs import installed

pytestmark = pytest.mark.script

SCRIPTS = {
    "benchmarks/cpu.py": "--shrunk --rounds 1 --new-tokens 2 --docs=",
    "benchmarks/curve.py": (
        "--keeps 0.5 --presets uniform cdpruner --trials 1 --samples 8 --image curve.svg"
    ),
    "benchmarks/gpu.py": "--tiny --seconds 1 --docs=",
    "benchmarks/mass.py": "--shrunk --rounds 1 --layers 0 --keep 0.1 --new-tokens 2 --docs=",
    "benchmarks/methods.py": "--samples 4 --keep 0.25 --out page.md",
    "benchmarks/metric.py": "--keeps 0.25 --seeds 0 --trials 1 --samples 4 --page=",
    "benchmarks/patience.py": (
        "--samplers tpe --keeps 0.25 --seeds 0 --patience 1 --trials 5 --samples 4"
    ),
    "benchmarks/precision.py": "--samples 2 --layers 0 --keep 0.1 --selectors cover",
    "benchmarks/precision_sets.py": "--samples 2 --layers 0 --selectors dpp",
    "benchmarks/pixels.py": (
        "--keeps 0.5 --seeds 0 --presets uniform --trials 1 --samples 4 --docs="
    ),
    "benchmarks/prefill.py": "--rounds 1 --tiny",
    "benchmarks/promise_coverage.py": (
        "--seeds 1 --trials 3 --pictures 10 --sets 1 --max-drop 40 --out seeds.jsonl"
    ),
    "benchmarks/proxies.py": (
        "--keeps 0.25 --configs 2 --trials 1 --samples 4 --pictures 1 --fresh 9 --page="
    ),
    "benchmarks/report.py": "--study {study} --trials 3",
    "benchmarks/report_open.py": "{study}/report.html --rounds 1",
    "benchmarks/samplers.py": (
        "--samplers tpe/0 cmaes+qmc --keeps 0.25 --seeds 0 --trials 1 --samples 4 --at 1"
    ),
    "benchmarks/selecting.py": "--tiny",
    "benchmarks/selecting_share.py": "--shrunk --rounds 1 --keep 0.1 --width 16 --docs=",
    "benchmarks/scoring.py": "--rounds 2 --tiny",
    "benchmarks/search_cost.py": "--quick --cases tiny",
    "benchmarks/search_memory.py": "--samples 1 2 --trials 1",
    "benchmarks/search_shared.py": ("--cases tiny --samples 8 --keeps 0.25 --rounds 0 --trials 1"),
    "benchmarks/second_opinion.py": (
        "--witness tiny-1 --keeps 0.25 --samples 4 --seeds 1 --trials 1 --only uniform searched "
        "--docs=page.md"
    ),
    "benchmarks/starts.py": "--models tiny --keeps 0.25 --samples 4",
    "benchmarks/timeouts.py": "--seconds 20 --cases keep",
    "benchmarks/serve_attack.py": "--minutes 0.1 --clients 6",
    "benchmarks/ttft.py": "--shrunk --rounds 1 --docs=",
    "benchmarks/search_workers.py": "--trials 1 --samples 2 --tiny",
    "benchmarks/searches.py": (
        "--keeps 0.25 --seeds 0 --trials 1 --samples 4 --parts flash --fresh 9 --no-baselines"
    ),
    "benchmarks/vllm_throughput.py": "--tiny",
    "training/tiny/average.py": "0.5 {checkpoint} 0.5 {model} --out mean.safetensors",
    "training/tiny/evaluate.py": "{model} --kind busy --pictures 1 --others 1 --generate 1 --json",
    "training/tiny/export.py": "{checkpoint} --out model --card {card} {card} --notes {notes}",
    "training/tiny/make_calibration.py": "--out data --pictures 1",
    "training/tiny/train.py": (
        "--run run --processes 1 --max-steps 1 --pictures 2 --busy 0.5 --looks 1"
    ),
}
MODEL = ROOT / "prunetune" / "embedded" / "tiny"


@pytest.fixture(scope="module")
def forge():
    with Forge() as found:
        yield found


@pytest.fixture(scope="module")
def ran(forge):
    """Run a script and return what it said."""

    def run(script, words, folder):
        name = script.removesuffix(".py").replace("/", ".")
        named = name if script.startswith("training/") else ROOT / script
        status, said = forge.run(named, *words, folder=folder)
        assert status == 0, said[-3000:]
        return said

    return run


@pytest.fixture(scope="module")
def study(forge, tmp_path_factory):
    """A finished study of the embedded model, on one picture a split."""
    folder = tmp_path_factory.mktemp("study")
    small = ["--out", "data", "--pictures", "1"]
    status, said = forge.run("training.tiny.make_calibration", *small, folder=folder)
    assert status == 0, said
    words = "search --data data/calibration --held-out data/held_out --trials 1 --threads 1"
    words += " --preset none --out run"
    status, said = forge.run("prunetune", *words.split(), folder=folder)
    assert status == 0, said
    return folder / "run"


@pytest.fixture(scope="module")
def checkpoint(ran, tmp_path_factory):
    """What training leaves after its first step."""
    folder = tmp_path_factory.mktemp("trained")
    ran("training/tiny/train.py", SCRIPTS["training/tiny/train.py"].split(), folder)
    return folder / "run" / "checkpoint.safetensors"


@pytest.fixture(scope="module")
def card(ran, tmp_path_factory):
    """An evaluation, and texts for a model card."""
    folder = tmp_path_factory.mktemp("card")
    words = f"{MODEL} --pictures 2 --others 1 --json".split()
    (folder / "card.json").write_text(ran("training/tiny/evaluate.py", words, folder))
    texts = {"agreement": "", "trained": "", "limits": "", "columns": ["one", "other"]}
    (folder / "notes.json").write_text(json.dumps(texts))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs(script, ran, tmp_path, request):
    if script.endswith("report_open.py") and not shutil.which("chromedriver"):
        pytest.skip("chromedriver is missing; apt-get install chromium chromium-driver")
    if script.endswith("vllm_throughput.py") and not installed():
        pytest.skip("needs vLLM: make test-vllm")
    given = {"model": MODEL}
    for name in ("study", "checkpoint"):
        if f"{{{name}}}" in SCRIPTS[script]:
            given[name] = request.getfixturevalue(name)
    if "{card}" in SCRIPTS[script]:
        folder = request.getfixturevalue("card")
        given |= {"card": folder / "card.json", "notes": folder / "notes.json"}
    words = [word.format(**given) for word in SCRIPTS[script].split()]
    ran(script, words, tmp_path)


@pytest.mark.slow
def test_a_broken_script_would_be_noticed(forge, tmp_path):
    script = tmp_path / "broken.py"
    whole = (ROOT / "benchmarks" / "patience.py").read_text("utf-8")
    shutil.copy(ROOT / "benchmarks" / "common.py", tmp_path)
    for needed in ("searches.py", "fresh.py", "ledger.py"):
        shutil.copy(ROOT / "benchmarks" / needed, tmp_path)
    for broken, word in (
        (whole.replace("prunetune.study.study", "prunetune.study.gone"), "No module named"),
        (whole.replace("    torch.set_num_threads(1)", "    torch.set_threads(1)"), "set_threads"),
    ):
        assert broken != whole
        script.write_text(broken)
        status, said = forge.run(
            script, *SCRIPTS["benchmarks/patience.py"].split(), folder=tmp_path
        )
        assert status == 1
        assert word in said


def tree(path):
    return ast.parse(path.read_text("utf-8"))


def is_script(path):
    return any(
        isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)
        for node in tree(path).body
    )


def imported_by(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[-1]


def test_every_file_is_run_or_used_by_one_that_is():
    files = [*ROOT.glob("benchmarks/*.py"), *ROOT.glob("training/*/*.py")]
    scripts = {str(path.relative_to(ROOT)) for path in files if is_script(path)}
    assert scripts == set(SCRIPTS)
    used, new = set(), {ROOT / script for script in SCRIPTS}
    while new:
        used |= new
        names = {(path.parent, name) for path in new for name in imported_by(path)}
        new = {folder / f"{name}.py" for folder, name in names} & set(files) - used
    left = {path for path in files if path.name != "__init__.py"} - used
    assert not left, f"nothing that is tested uses {sorted(map(Path.as_posix, left))}"
