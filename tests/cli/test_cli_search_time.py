"""A search's time counts from the start of its command."""

import re
import time

from cli_runner import call

import prunetune.cli
from prunetune.cli._app import begun


def test_what_was_imported_before_counts(tmp_path, monkeypatch):
    """A command that began long ago has no time left: what it needs is told from then on."""

    class Earlier:
        monotonic = staticmethod(lambda: time.monotonic() - 1000)

    flags = ("--model", "tiny", "--timeout", 900, "--out", tmp_path / "run")
    monkeypatch.setattr(prunetune.cli, "time", Earlier)
    ran = call("search", *flags)
    assert ran.status == 2
    assert re.search(r"--timeout: received 900, allowed here (about|more than) 1\d\d\d\b", ran.err)
    assert not (tmp_path / "run").exists()


def test_each_command_has_its_own_start():
    """The twin: a later one in the same process begins later."""
    before = time.monotonic()
    assert call("presets").status == 0
    first = begun()
    assert call("presets").status == 0
    assert before <= first < begun() <= time.monotonic()
