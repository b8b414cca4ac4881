"""Examples of README and docs/: those on the embedded model run as written, the others parse."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch
from cli_runner import call, picture, write_set

import prunetune
from prunetune.calibration import encode, load_calibration
from prunetune.cli import _app
from prunetune.models import load_model

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])
# What makes a verb quick; the words of the page come first and stay.
SMALL = {
    "search": "--data {data} --trials 2 --patience 0 --preset none --no-report --threads 1",
    "verify": "--data {data} --threads 1",
    "export": "--threads 1",
    "report": "--threads 1",
    "bench": "--rounds 1 --threads 1",
}
# Serves until it is told to stop; `tests/review/test_dashboard.py` runs it.
ENDLESS = {"dashboard"}


def code(page):
    """Yield (line number, block) of every indented or fenced block of a page."""
    lines, block, fenced = page.read_text("utf-8").splitlines(), [], False
    for number, line in enumerate([*lines, ""], 1):
        fence = line.lstrip().startswith("```")
        if fence:
            fenced = not fenced
        inside = not fence and (fenced or line.startswith("    "))
        if inside:
            block.append(line if fenced else line[4:])
        elif block and (fence or line.strip() or not fenced):
            yield number - len(block), block
            block = []


def commands(page):
    """Yield (line number, words) of every command of this project in a page's blocks."""
    for first, block in code(page):
        for k, line in enumerate(block):
            line = line.removeprefix("$ ")
            if re.match(r"(prunetune|python) \S", line):
                yield first + k, shlex.split(line, comments=True)


def everything():
    return [
        pytest.param(words, id=f"{page.name}:{number}")
        for page in PAGES
        for number, words in commands(page)
    ]


def problem(words):
    """Return what is wrong with a command, by the parser that runs it; None for nothing."""
    if words[0] == "python":
        return script_problem(words[1:])
    for module in _app.VERBS:
        importlib.import_module(f"prunetune.cli.{module}")
    command = _app.get_command(_app.app)
    verb = command.commands.get(words[1])
    if verb is None:
        return f"no verb {words[1]}"
    try:
        verb.make_context(words[1], words[2:])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def script_problem(words):
    if words[:2] == ["-m", "prunetune"]:
        return problem(["prunetune", *words[2:]])
    path = ROOT / (f"{words[1].replace('.', '/')}.py" if words[0] == "-m" else words[0])
    if not path.is_file():
        return f"no file {path.relative_to(ROOT)}"
    text = path.read_text("utf-8")
    missing = [word for word in words if word.startswith("--") and f'"{word}"' not in text]
    return f"{path.name} has no {missing}" if missing else None


@pytest.mark.parametrize("words", everything())
def test_every_command_parses(words):
    assert problem(words) is None


def test_the_pages_have_commands():
    assert len(everything()) > 30


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("prunetune search --model tiny --kep 0.25", "--kep"),
        ("prunetune serch --model tiny", "no verb serch"),
        ("prunetune export", "FILE|STUDY|argument"),
        ("prunetune search --trials many", "integer"),
        ("python benchmarks/gone.py", "no file"),
        ("python benchmarks/prefill.py --round 9", "--round"),
    ],
)
def test_a_wrong_command_would_be_noticed(line, said):
    assert re.search(said, problem(shlex.split(line)) or "", re.IGNORECASE)


# -- what runs as written ---------------------------------------------------------------------


def of_the_embedded_model(page):
    """Yield the commands of a page that need nothing but the embedded model and two pictures."""
    for _, words in commands(page):
        line = " ".join(words)
        # What a promise needs, tests/ of the promise have; its study is tiny-keep0.03-0.75.
        if "--max-drop" in words:
            continue
        if words[0] == "prunetune" and re.search(r"tiny\b(?!-keep0.0)", line):
            yield words


def without_defaults(words):
    """Return words and what makes them quick, where they do not say that themselves."""
    extra = SMALL.get(words[1], "").split()
    flags = {word for word in words if word.startswith("--")}
    pairs = [k for k, word in enumerate(extra) if word.startswith("--") and word not in flags]
    kept = []
    for k in pairs:
        kept += extra[k : next((j for j in range(k + 1, len(extra)) if extra[j][:2] == "--"), None)]
    return [*words[1:], *kept]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """A folder with what the commands of README and the first search name, after they have run."""
    folder = tmp_path_factory.mktemp("readme")
    picture(1, (128, 128)).save(folder / "photo.png")
    write_set(folder / "set")
    ran = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        pages = ROOT / "README.md", ROOT / "docs" / "start.md"
        for words in (words for page in pages for words in of_the_embedded_model(page)):
            if words[1] in ENDLESS or " ".join(words) in ran:
                continue
            small = [word.format(data=folder / "set") for word in without_defaults(words)]
            ran[" ".join(words)] = call(*small)
            if words[1] == "export":
                (folder / "old.prune.json").write_bytes((folder / words[-1]).read_bytes())
    return folder, ran


@pytest.mark.script
def test_the_readmes_first_search_runs_as_written(quickstart):
    folder, ran = quickstart
    assert {line.split()[1] for line in ran} == {
        *("search", "status", "export", "verify", "show", "report", "diff", "bench")
    }
    for line, found in ran.items():
        # Two trials are no good config: what a gate says of it is as it should be.
        allowed = {0, 1} if "--max-gap" in line else {0}
        assert found.status in allowed, f"{line}: {found.err}"
    assert {"tiny.prune.json", "kept.png"} <= {path.name for path in folder.iterdir()}


def python_blocks():
    return [
        pytest.param("\n".join(block), id=f"{page.name}:{number}")
        for page in PAGES
        # Those need packages of their own: tests/test_recipes.py.
        if page.name != "recipes.md"
        for number, block in code(page)
        if any(re.match(r"(import|from|with) .*prunetune", line) for line in block)
    ]


@pytest.mark.script
@pytest.mark.parametrize("block", python_blocks())
def test_python_runs_as_written(block, quickstart, monkeypatch):
    folder, _ = quickstart
    monkeypatch.chdir(folder)
    for name in re.findall(r'"([\w.-]+\.prune\.json)"', block):
        if not (folder / name).exists():
            (folder / name).write_bytes((folder / "tiny.prune.json").read_bytes())
    loaded = load_model("tiny")
    sample = load_calibration("tiny", samples=1)[0].samples[0]
    given = {
        "model": loaded.model,
        "processor": loaded.processor,
        "images": list(sample.images),
        "texts": ["<image> what color is the star ?"],
        "inputs": encode(loaded.processor, [sample]),
        "prunetune": prunetune,
        "PruningConfig": prunetune.PruningConfig,
    }
    with torch.no_grad():
        exec(compile(block, "example", "exec"), given)


def test_python_that_names_what_is_not_there_would_be_noticed():
    assert python_blocks()
    with pytest.raises(AttributeError, match="aply"):
        exec(compile("import prunetune\nprunetune.aply(None, None)", "example", "exec"), {})
