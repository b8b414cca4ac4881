"""Every verb takes anything and ends in words: `make fuzz` for hours, some seconds here."""

import os
import random
import time
from collections import Counter

import hypothesis
import pytest
from commands import SECRET, Watched, commands
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prunetune.config import PruningConfig
from prunetune.errors import ConfigError
from prunetune.spec import StudySpec

SECONDS = float(os.environ.get("PRUNETUNE_FUZZ_SECONDS", "20"))
SEED = os.environ.get("PRUNETUNE_FUZZ_SEED")


def for_seconds(seconds, strategy, check):
    """Check drawn examples until the time is over; what fails is made smaller, and told."""
    dice = random.Random(int(SEED) if SEED else 0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:

        @hypothesis.seed(dice.randrange(1 << 30))
        @settings(
            max_examples=20,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def run(example):
            if time.monotonic() < end:
                check(example)

        run()


@pytest.mark.slow
@pytest.mark.timeout(max(300, 3 * SECONDS))
def test_every_verb_ends_in_words(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PRUNETUNE_CACHE", str(tmp_path / "inside" / "cache"))
    monkeypatch.chdir(tmp_path)
    watched = Watched(tmp_path, capsys)
    for_seconds(0.8 * SECONDS, commands(), watched.check)
    with capsys.disabled():
        print(f"\nfuzzed: {dict(watched.tried)}, exit statuses {dict(watched.ended)}")
    assert watched.tried


def test_what_breaks_a_verb_is_found(tmp_path, capsys, monkeypatch):
    """The twin: a bug, a secret, and a file in a place that was not given."""
    watched = Watched(tmp_path, capsys)
    for planted in (
        lambda argv: 3,
        lambda argv: print(SECRET) or 0,
        lambda argv: (watched.outside / "new").write_text("") or 0,
    ):
        monkeypatch.setattr("commands.main", planted)
        with pytest.raises(AssertionError):
            watched.check(["models"])


PIECES = (
    *("{", "}", "[", "]", '"', ",", ":", "null", "-1", "1e999", "NaN", "9" * 400),
    *("\\ud83d", "\x00"),
)


@st.composite
def mutated(draw, text):
    """A text with some of its parts replaced, doubled or left out."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 20)))
        piece = draw(st.sampled_from((*PIECES, "", text[start:end] * 2)))
        text = text[:start] + piece + text[end:]
    return text


@pytest.mark.timeout(max(300, SECONDS))
def test_mutated_files_are_read_or_refused(tmp_path, request, capsys):
    golden = request.path.parents[1] / "golden" / "v2_everything.json"
    spec = StudySpec(model="tiny", keep=0.25).to_toml()

    def again(kind, name):
        def check(text):
            tried[kind.__name__] += 1
            path = tmp_path / name
            path.write_text(text, encoding="utf-8", errors="surrogatepass")
            try:
                found = kind.load(path)
            except ConfigError as error:
                said.append(str(error))
                return
            assert kind.load(found.save(tmp_path / f"again-{name}")) == found

        return check

    said, tried = [], Counter()
    for_seconds(0.1 * SECONDS, mutated(golden.read_text()), again(PruningConfig, "c.json"))
    for_seconds(0.1 * SECONDS, mutated(spec), again(StudySpec, "s.toml"))
    with capsys.disabled():
        print(f"\nmutated: {dict(tried)}, refused {len(said)}")
    assert all("\n" not in line and len(line) < 2000 for line in said)
    assert 0 < len(said) < tried.total()
