"""Command lines and files that nobody would write, and what a run of one must not do."""

import json
import os
import time
from collections import Counter
from importlib import import_module
from pathlib import Path

import typer
from hypothesis import strategies as st
from PIL import Image

from prunetune.cli import main
from prunetune.cli._app import VERBS, app

SECRET = "hunter2secret"
BOUND = 90.0
"""Seconds that one command of this size may take on a busy machine."""

for _verb in VERBS:
    import_module(f"prunetune.cli.{_verb}")

# Verbs that would go on until they are stopped: their address is nobody's here.
SERVING = ("serve", "dashboard")
LONG = ("search", "bench")
WORDS = (
    "",
    " ",
    "x",
    "-1",
    "0",
    "1",
    "1e300",
    "nan",
    "inf",
    "0.25",
    "9" * 30,
    "9" * 5000,
    "tiny",
    "llava-next",
    "topv",
    "none",
    "a=b",
    "a=",
    "=",
    "\x1b[31mred\x1b[0m",
    "e\u0301\U0001f600",
    "\u202eabc",
    "\udcff",
    "\n",
    "\x00",
    "a" * 3000,
    "/",
    ".",
    "..",
    "/dev/null",
    "/dev/zero",
    "fifo",
    "folder",
    "config.json",
    "broken.json",
    "deep.json",
    "digits.json",
    "surrogate.json",
    "bom.json",
    "layers.json",
    "spec.toml",
    "deep.toml",
    "digits.toml",
    "picture.png",
    "thin.png",
    "noise.bin",
    "rows.jsonl",
    "surrogates.jsonl",
    "empty",
    "other.db",
    "sqlite:///other.db",
    "sqlite://",
    f"postgresql://me@corp:{SECRET}@127.0.0.1:1/db",
    f"postgresql://me:{SECRET} x@127.0.0.1:1/db",
    f"postgresql://me:{SECRET}",
    f"postgresql://me:{SECRET}@127.0.0.1:port/db",
    f"mysql://me:{SECRET}@h/db",
    f"http://me:{SECRET}@127.0.0.1:1/x.png",
    f"postgresql://127.0.0.1:1/db?password={SECRET}",
)


def write_files(folder):
    """Write what the words name."""
    from prunetune.config import PruningConfig
    from prunetune.presets import load_preset

    found, _ = load_preset("topv", model_type="llava_next", num_layers=16, keep=0.2)
    config = PruningConfig.parse(found.model_dump() | {"model": found.model.model_dump()})
    config.save(folder / "config.json")
    text = config.to_json()
    said = json.loads(text)
    layers = {**said, "model": {**said["model"], "num_layers": 2_000_000_000}}
    for name, content in {
        "broken.json": text[:100],
        "deep.json": "[" * 100_000,
        "digits.json": text.replace('"version": 1', f'"version": {"9" * 5000}'),
        "surrogate.json": text.replace('"name": ""', '"name": "\\ud83d"'),
        "bom.json": "\ufeff" + text,
        "layers.json": json.dumps(layers),
        "spec.toml": 'model = "tiny"\nkeep = 0.25\ntrials = 1\nsamples = 2\n',
        "deep.toml": "a = " + "[" * 20_000 + "]" * 20_000,
        "digits.toml": f"seed = {'9' * 5000}",
        "rows.jsonl": '{"image": "picture.png", "question": "a"}\n',
        "surrogates.jsonl": '{"image": "picture.png", "question": "\\ud83d"}\n',
        "empty": "",
        "other.db": "",
    }.items():
        (folder / name).write_text(content, encoding="utf-8")
    Image.new("RGB", (32, 32), "red").save(folder / "picture.png")
    Image.new("RGB", (1, 5000)).save(folder / "thin.png")
    (folder / "noise.bin").write_bytes(bytes(range(256)) * 40)
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")


def options(verb):
    """Return the flags of a verb, and whether each takes a value."""
    command = typer.main.get_command(app).commands[verb]
    found = []
    for parameter in command.params:
        flags = [flag for flag in parameter.opts if flag.startswith("-")]
        if flags and "--open" not in flags:
            found.append((flags[0], not getattr(parameter, "is_flag", False)))
    return found


@st.composite
def commands(draw, verbs=VERBS):
    """A verb with some of its flags, most of them wrong."""
    verb = draw(st.sampled_from(verbs))
    word = st.sampled_from(WORDS) | st.text(max_size=12)
    argv = [verb]
    if verb == "data":
        argv.append(draw(st.sampled_from(["check", "show", "x"])))
        flags = []
    else:
        flags = draw(st.lists(st.sampled_from(options(verb)), max_size=4))
    argv += draw(st.lists(word, max_size=3))
    for flag, takes in flags:
        argv += [flag, draw(word)] if takes else [flag]
    if verb in LONG:
        # What is right by chance would take minutes.
        argv += ["--model", "folder"]
    if verb in SERVING:
        argv += ["--host", "203.0.113.1"]
    return argv


class Watched:
    """Runs commands in a folder, and looks at what they leave.

    Attributes:
        tried: Commands by verb.
        ended: Exit statuses.
    """

    def __init__(self, root: Path, capsys):
        self.inside, self.outside = root / "inside", root / "outside"
        self.inside.mkdir()
        self.outside.mkdir()
        (self.outside / "kept").write_text("kept")
        write_files(self.inside)
        self._root, self._capsys = root, capsys
        self.tried, self.ended = Counter(), Counter()

    def check(self, argv):
        """Run a command; it must end in words, and touch nothing else."""
        os.chdir(self.inside)
        self._capsys.readouterr()
        begun = time.monotonic()
        status = main(argv)
        seconds = time.monotonic() - begun
        out, err = self._capsys.readouterr()
        self.tried[argv[0]] += 1
        self.ended[status] += 1
        shown = f"{argv!r}\n{err[-1500:]}"
        assert status in (0, 1, 2), shown
        assert "--debug" in argv or "Traceback" not in err + out, shown
        assert SECRET not in err + out, shown
        assert "\x1b" not in err + out, shown
        assert seconds < BOUND, f"{seconds:.0f} s: {shown}"
        if status == 2:
            lines = [line for line in err.splitlines() if line.startswith("error: ")]
            assert len(lines) == 1, shown
            assert len(lines[0]) < 2000, shown
        assert [path.name for path in self.outside.iterdir()] == ["kept"], shown
        assert sorted(path.name for path in self._root.iterdir()) == ["inside", "outside"], shown
