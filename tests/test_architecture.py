"""Who may import whom, and what a deployment never loads."""

import ast
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import prunetune

PACKAGE = Path(prunetune.__file__).parent
# Imports only run down this list, and never in circles. Rooms of one line may import each other;
# scorers, selectors, restorers and families not at all.
ORDER = (
    ("cli",),
    ("review", "deploy", "study"),
    ("vllm", "lmms"),
    ("measure",),
    ("spec",),
    ("promise",),
    ("space",),
    ("calibration", "runtime"),
    ("presets", "budget"),
    ("config", "provenance", "schedules", "models", "pixels"),
    ("scorers", "selectors", "restorers", "families"),
    ("hub",),
    (
        *("tokens", "registry", "files", "messages", "secrets", "interrupts", "numerics"),
        *("masking", "release", "errors", "texts"),
    ),
)
STRANGERS = ORDER[-3]
# The same inside rooms with floors; each name is a folder or a file.
FLOORS = {
    "study": (
        "find",
        "run",
        "workers",
        "forecast",
        "prepare",
        "study",
        "outcome",
        "opening",
        "resumed",
        "places",
        "trials",
        "clock",
        "durations",
        "database",
    ),
    "runtime": (
        "suffix",
        "apply",
        "handle",
        "inputs",
        "frame",
        "leave",
        "promises",
        "choice",
        "layers",
        "vision",
        "trace",
        "compiled",
        "copies",
    ),
}
# What only lmms-eval's processes may load.
LMMS = {"lmms"}
# Files of one folder that a person still finds their way in.
FULL = 26
# But where each file is one part of a table: one knows the name, and finds it without looking.
TABLES = {"families"}
# What only a study may load.
OPTUNA = {"cli", "review", "study"}
# What only vLLM's processes may load: vLLM itself, and the room that is its plug-in.
VLLM = {"vllm"}
ASK_VLLM = {"cli", "deploy", "vllm"}
LONGEST = 300
# Circles that are known: to be mended, not to be copied.
KNOWN: set[frozenset[str]] = set()
LAZY = {name: path.split(".")[1] for name, path in prunetune._LAZY.items()}

Edges = dict[str, set[str]]


def imports(source: str, module: str) -> Iterator[str]:
    """Yield the dotted name of everything imported, also inside functions.

    A type may be named from anywhere: `if TYPE_CHECKING:` at the top of a file loads nothing.
    """
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
    return LAZY.get(parts[1], parts[1])


def floor_of(module: str) -> tuple[str, str] | None:
    """Return the room of a dotted name and the folder or file in it; None outside FLOORS."""
    parts = module.split(".")
    inside = parts[0] == "prunetune" and len(parts) > 2 and parts[1] in FLOORS
    return (parts[1], parts[2]) if inside else None


def modules() -> dict[str, str]:
    """Return the source of every module by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path.read_text("utf-8")
    return {name: found[name] for name in found.keys() - {"prunetune", "prunetune.__main__"}}


def wrong(sources: dict[str, str]) -> set[tuple[str, str]]:
    """Return the (room, room) of every import that runs up the list, or between strangers."""
    level = {room: k for k, rooms in enumerate(ORDER) for room in rooms}
    found = set()
    for module, source in sources.items():
        for there in map(room_of, imports(source, module)):
            here = room_of(module)
            if here and there and here != there:
                strange = here in STRANGERS and there in STRANGERS
                if level[here] > level[there] or strange:
                    found.add((here, there))
    return found


def wrong_inside(sources: dict[str, str]) -> set[tuple[str, str]]:
    """Return the (floor, floor) of every import inside a room that runs up its list."""
    found = set()
    for module, source in sources.items():
        here = floor_of(module)
        for there in map(floor_of, imports(source, module)):
            if here and there and here[0] == there[0]:
                order = FLOORS[here[0]]
                if order.index(here[1]) > order.index(there[1]):
                    found.add((here[1], there[1]))
    return found


def files_imported(sources: dict[str, str]) -> Edges:
    """Return which file imports which; a name that a package hands on counts as the package."""
    return {
        module: {
            imported if imported in sources else imported.rpartition(".")[0]
            for imported in imports(source, module)
        }
        & (sources.keys() - {module})
        for module, source in sources.items()
    }


def rooms_imported(sources: dict[str, str]) -> Edges:
    """Return which room imports which."""
    found: Edges = {}
    for module, source in sources.items():
        here = room_of(module) or ""
        theres = {room for name in imports(source, module) if (room := room_of(name))}
        found.setdefault(here, set()).update(theres - {here})
    return found


def circles(edges: Edges) -> set[frozenset[str]]:
    """Return the sets of nodes that can all be reached from one another."""
    reach = {node: set(edges[node]) for node in edges}
    grown = True
    while grown:
        grown = False
        for node, reached in reach.items():
            more = set().union(*(reach.get(other, set()) for other in reached)) - reached
            if more:
                reach[node] = reached | more
                grown = True
    return {
        frozenset(other for other in reach if other in reach[node] and node in reach[other])
        for node in reach
        if node in reach[node]
    }


def test_every_file_has_a_room():
    known = {room for rooms in ORDER for room in rooms}
    unknown = {room_of(name) for name in modules()} - known
    assert not unknown, f"say in ORDER where these belong: {unknown}"
    floors = {floor for name in modules() if (floor := floor_of(name))}
    unknown = {(room, floor) for room, floor in floors if floor not in FLOORS[room]}
    assert not unknown, f"say in FLOORS where these belong: {unknown}"


def test_imports_only_run_down():
    assert wrong(modules()) == set()
    assert wrong_inside(modules()) == set()


def test_no_room_and_no_file_imports_itself_through_others():
    assert circles(rooms_imported(modules())) == set()
    assert circles(files_imported(modules())) == KNOWN


def test_no_file_is_long():
    long = {name: n for name, text in modules().items() if (n := length(text)) > LONGEST}
    assert long == {}, f"files of over {LONGEST} lines: part them by what they know"


def length(text: str) -> int:
    return len(text.splitlines())


def full(paths: Iterable[Path]) -> dict[Path, int]:
    """Return the folders of these files that hold more than a person oversees, and how many."""
    counts = Counter(path.parent for path in paths if path.parent.name not in TABLES)
    return {folder: count for folder, count in counts.items() if count > FULL}


def test_no_folder_is_full():
    assert full(PACKAGE.rglob("*.py")) == {}, f"over {FULL} files: part them by what they know"


def test_only_a_study_knows_optuna():
    knows = {room_of(m) for m, text in modules().items() if loads(text, m, "optuna")}
    assert knows <= OPTUNA


def test_only_the_plug_in_knows_vllm():
    assert {room_of(m) for m, text in modules().items() if loads(text, m, "vllm")} == VLLM
    assert {room_of(m) for m, text in modules().items() if loads(text, m, "lmms_eval")} == LMMS
    asks = {here for here, theres in rooms_imported(modules()).items() if "vllm" in theres}
    assert asks <= ASK_VLLM


def loads(source: str, module: str, package: str) -> bool:
    return any(name.split(".")[0] == package for name in imports(source, module))


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("prunetune.scorers.x", "from prunetune.runtime import apply", ("scorers", "runtime")),
        ("prunetune.scorers.x", "from prunetune import apply", ("scorers", "runtime")),
        ("prunetune.scorers.x", "import prunetune.families.llava", ("scorers", "families")),
        ("prunetune.scorers.x", "from prunetune import restorers", ("scorers", "restorers")),
        ("prunetune.config", "def f():\n    from prunetune.study import x", ("config", "study")),
        ("prunetune.space.x", "from prunetune.spec import S", ("space", "spec")),
        ("prunetune.measure.x", "from prunetune import search", ("measure", "study")),
        ("prunetune.deploy.x", "import prunetune.cli", ("deploy", "cli")),
    ],
)
def test_a_wrong_import_would_be_noticed(module, source, expected):
    assert wrong({module: source}) == {expected}


def test_a_wrong_import_inside_a_room_would_be_noticed():
    up = {"prunetune.study.database.x": "def f():\n    from prunetune.study.trials import loop"}
    assert wrong_inside(up) == {("database", "trials")}
    assert wrong_inside({"prunetune.study.run": "import prunetune.study.find"})
    assert not wrong_inside({"prunetune.study.find": "import prunetune.study.run"})
    up = {"prunetune.runtime.layers.x": "from prunetune.runtime.choice import plan"}
    assert wrong_inside(up) == {("layers", "choice")}


def test_a_circle_would_be_noticed_and_a_type_may_be_named():
    inside = "def f():\n    from prunetune.a import g"
    named = "if TYPE_CHECKING:\n    from prunetune.a import g"
    three = {"prunetune.a": "import prunetune.b", "prunetune.b": "import prunetune.c"}
    assert circles(files_imported({**three, "prunetune.c": named})) == set()
    (found,) = circles(files_imported({**three, "prunetune.c": inside}))
    assert found == {"prunetune.a", "prunetune.b", "prunetune.c"}
    rooms = {"prunetune.models.x": "import prunetune.runtime.y"}
    rooms |= {"prunetune.runtime.z": "import prunetune.models.x"}
    assert circles(rooms_imported(rooms)) == {frozenset({"models", "runtime"})}
    assert circles(files_imported(rooms)) == set()


def test_a_long_file_a_full_folder_and_an_optuna_elsewhere_would_be_noticed():
    assert length("\n" * LONGEST) <= LONGEST < length("\n" * (LONGEST + 1))
    crowd = [Path(f"room/{k}.py") for k in range(FULL + 1)]
    assert full(crowd) == {Path("room"): FULL + 1}
    assert full(crowd[1:]) == {}
    assert full(Path("families") / path.name for path in crowd) == {}
    assert full(Path("families/bases") / path.name for path in crowd) != {}
    assert loads("def f():\n    from optuna.trial import T", "prunetune.measure.x", "optuna")


@pytest.mark.parametrize("room", STRANGERS)
def test_leaves_know_their_base_only(room):
    for name, source in modules().items():
        leaf = name.split(".")[-1]
        if room_of(name) == room and leaf != room and not leaf.startswith("base"):
            siblings = {m for m in imports(source, name) if room_of(m) == room}
            # ``base``, or what several share: ``bases.qwen``.
            assert {m for m in siblings if not m.startswith(f"prunetune.{room}.base")} == set()


# -- the tests ---------------------------------------------------------------------------

TESTS = Path(__file__).parent
# Folders of tests/ that are no rooms: files of old releases, models that several rooms use, tools/.
OTHERS = {"golden", "family_models", "fuzz", "tools"}


def folders(root: Path) -> set[str]:
    """Return the folders below one, as paths from there."""
    found = (path for path in root.rglob("*") if path.is_dir() and path.name != "__pycache__")
    return {path.relative_to(root).as_posix() for path in found}


def test_tests_mirror_the_rooms():
    ours = {path for path in folders(TESTS) if path.split("/")[0] not in OTHERS}
    assert ours <= folders(PACKAGE)
    names = [path.name for path in TESTS.rglob("*.py") if path.parent.name not in OTHERS]
    assert twice([name for name in names if name != "conftest.py"]) == set()


def twice(names: list[str]) -> set[str]:
    return {name for name in names if names.count(name) > 1}


def test_two_files_of_one_name_would_be_noticed():
    assert twice(["test_a.py", "test_b.py", "test_a.py"]) == {"test_a.py"}


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
        # What vLLM imports and calls in every process, whether or not anything is pruned.
        "import prunetune.vllm\nprunetune.vllm.os.environ = {}\nprunetune.vllm.register()",
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
