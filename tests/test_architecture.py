"""Who may import whom, and what a deployment never loads."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import prunetune

PACKAGE = Path(prunetune.__file__).parent
# Imports only run down this list. Files of one line may import each other, but not in circles;
# scorers, restorers and families not at all.
ORDER = (
    ("cli",),
    ("search", "review", "deploy"),
    ("calibration", "models", "aliases", "runtime"),
    ("config", "budget", "presets"),
    ("scorers", "restorers", "families"),
    (
        "tokens",
        "registry",
        "files",
        "fingerprint",
        "weights",
        "processors",
        "devices",
        "errors",
    ),
)
STRANGERS = ORDER[4]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
# To be mended, not to be copied: (room, room) of imports that run to the left.
DEBTS: set[tuple[str, str]] = set()
# A type may be named from anywhere: `if TYPE_CHECKING:` at the top of a file loads nothing.
LAZY = {name: path.split(".")[1] for name, path in prunetune._LAZY.items()}


def edges(source: str, module: str) -> Iterator[tuple[str, str]]:
    """Yield (room, room) for every import of prunetune in a module, also inside functions."""
    for imported in imports(source, module):
        here, there = room_of(module), room_of(imported)
        if here and there and here != there:
            yield here, there


def imports(source: str, module: str) -> Iterator[str]:
    tree = ast.parse(source)
    typing_only = {
        inner
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def room_of(module: str) -> str | None:
    """Return the room of a dotted name; None outside the package and for its root."""
    parts = module.split(".")
    if parts[0] != "prunetune" or len(parts) == 1 or parts[1].startswith("__"):
        return None
    return LAZY.get(parts[1], parts[1]) if parts[1] not in LEVEL else parts[1]


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found.append((".".join(parts).removesuffix(".__init__"), path))
    return [(name, path) for name, path in found if name not in ("prunetune", "prunetune.__main__")]


def all_edges() -> set[tuple[str, str]]:
    return {edge for name, path in modules() for edge in edges(path.read_text("utf-8"), name)}


def wrong(found: set[tuple[str, str]]) -> set[tuple[str, str]]:
    return {
        (here, there)
        for here, there in found
        if LEVEL[here] > LEVEL[there] or (here in STRANGERS and there in STRANGERS)
    }


def circles(found: set[tuple[str, str]]) -> set[str]:
    """Return the rooms that can be reached from themselves."""
    reach = set(found)
    for _ in LEVEL:
        reach |= {(a, d) for a, b in reach for c, d in reach if b == c}
    return {a for a, b in reach if a == b}


def test_every_file_has_a_room():
    rooms = {room_of(name) for name, _ in modules()}
    assert rooms <= LEVEL.keys(), f"say in ORDER where these belong: {rooms - LEVEL.keys()}"


def test_imports_only_run_to_the_right():
    assert wrong(all_edges()) == DEBTS


def test_no_room_imports_itself_through_others():
    assert circles(all_edges() - DEBTS) == set()


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("prunetune.scorers.x", "from prunetune.runtime import apply", ("scorers", "runtime")),
        ("prunetune.scorers.x", "from prunetune import apply", ("scorers", "runtime")),
        ("prunetune.scorers.x", "import prunetune.families.llava", ("scorers", "families")),
        ("prunetune.scorers.x", "from prunetune import restorers", ("scorers", "restorers")),
        ("prunetune.config", "def f():\n    from prunetune.search import x", ("config", "search")),
        ("prunetune.runtime.x", "from prunetune.spec import S", ("runtime", "search")),
        ("prunetune.deploy.x", "import prunetune.cli", ("deploy", "cli")),
    ],
)
def test_a_wrong_import_would_be_noticed(module, source, expected):
    assert wrong(set(edges(source, module))) == {expected}


def test_a_type_may_be_named_and_a_circle_would_be_noticed():
    typing_only = "if TYPE_CHECKING:\n    from prunetune.search import x\n"
    assert set(edges(typing_only, "prunetune.config")) == set()
    inside = "def f():\n    if TYPE_CHECKING:\n        from prunetune.search import x\n"
    assert set(edges(inside, "prunetune.config")) == {("config", "search")}
    assert circles({("models", "runtime"), ("runtime", "calibration"), ("calibration", "models")})


@pytest.mark.parametrize("room", STRANGERS)
def test_leaves_know_their_base_only(room):
    for name, path in modules():
        if room_of(name) == room and path.stem != "__init__" and not path.stem.startswith("base"):
            siblings = {m for m in imports(path.read_text("utf-8"), name) if room_of(m) == room}
            # ``base``, or what several share: ``base_qwen``.
            assert {m for m in siblings if not m.startswith(f"prunetune.{room}.base")} == set()


# -- what is loaded --------------------------------------------------------------------

SEARCH_ONLY = {"optuna", "optuna_dashboard", "sqlalchemy", "psycopg", "datasets", "plotly", "typer"}


def loaded_after(statements: str, names: set[str]) -> set[str]:
    """Run statements in a fresh interpreter and return which of ``names`` it has loaded."""
    return names & loaded_by_step(statements)[0]


def loaded_by_step(*steps: str) -> list[set[str]]:
    """Run statements in one fresh interpreter and return what it has loaded after each of them."""
    told = "\nimport sys, json\nprint(json.dumps(list(sys.modules)))\n"
    code = "".join(step + told for step in steps)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    return [set(json.loads(line)) for line in done.stdout.splitlines()[-len(steps) :]]


DEPLOYMENT = """
from prunetune.models import load_model
config = prunetune.PruningConfig.load("tests/golden/v1_everything.json")
model = load_model("tiny").model
prunetune.apply(model, config).remove()
"""


def test_what_is_loaded_by_and_by():
    """Nothing heavy by a bare import, nothing of the search by a deployment; then the twins."""
    bare, named, deployed, searching = loaded_by_step(
        "import prunetune",
        "prunetune.apply",
        DEPLOYMENT,
        "prunetune.search\nimport prunetune.study.study",
    )
    assert bare & {"torch", "transformers", "pydantic", "numpy"} == set()
    assert "torch" in named
    assert deployed & SEARCH_ONLY == set()
    assert "optuna" in searching


def test_the_public_names_work_in_any_order():
    # What is heavy is loaded once; each order then has a process of its own.
    code = "import os, sys, traceback, optuna, pydantic, transformers.masking_utils\n"
    for first in ("", "import prunetune.spec\n", "import prunetune.runtime.apply\n"):
        order = f"{first}import prunetune\n"
        order += "".join(f"assert callable(prunetune.{name})\n" for name in LAZY)
        code += f"""
sys.stdout.flush()
if not (child := os.fork()):
    try:
        assert "prunetune" not in sys.modules
        exec({order + order!r})
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
assert os.waitpid(child, 0)[1] == 0
"""
    assert loaded_after(code, {"prunetune"}) == set()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'prunetune' has no attribute 'aply'"):
        _ = prunetune.aply
