"""Passwords stay off screens, wherever and however they were typed."""

import json
import re
import signal

import pytest
from cli_runner import call, refused

from prunetune import secrets
from prunetune.cli import _app
from prunetune.cli._output import Output
from prunetune.study.database.connect import open_storage

PW = "hunter2 se@cret"
URLS = (
    f"postgresql://me@corp:{PW}@h/db",
    "postgresql://me:hunter2\nsecret@h/db",
    "postgresql://me:hunter2secret@h:port/db",
    "postgresql://me:hunter2secret",
    "postgresql://h/db?password=hunter2secret",
    "mysql+pymysql://me:hunter2%20secret@h/db",
)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.setattr(secrets, "_known", set())


@pytest.mark.parametrize("url", URLS)
def test_a_url_in_any_place(url, tmp_path):
    for argv in (
        ("verify", url),
        ("bench", url),
        ("serve", url),
        ("status", url),
        ("report", url),
        ("diff", url, url),
        ("data", "check", url),
        ("verify", tmp_path / "c.json", "--model", url),
        ("search", "--storage", url, "--model", "tiny", "--keep", 2, "--out", tmp_path / "o"),
        ("search", "--storage", url, "--no-such-flag"),
        ("models", url),
    ):
        ran = call(*argv)
        assert "hunter2" not in ran.out + ran.err, ran.err
        assert "secret" not in ran.err.replace("secret-", ""), ran.err
        assert ran.status == 2


def test_the_forms_of_passwords():
    for url in URLS:
        said = secrets.redact(f"cannot reach {url}: no such host")
        assert "hunter2" not in said.split("\n")[0]
    plain = "postgresql://me@h:5432/db, sqlite:////a/b.db, data:image/png, http://[::1]:80/x"
    assert secrets.redact(plain) == plain
    # Neither a revision nor a port is one, whoever's "@" stands behind it.
    for plain in (
        "received 'hf://A': there is no file; allowed hf://ORG/NAME/FILE.json[@REVISION]",
        "hf://A: give one with @REVISION",
        '{"url": "http://127.0.0.1:8000", "model": "m", "config": "c.prune.json@v1"}',
        "http://localhost:8000 serves it; ask a@b",
        "postgresql://h:5432/db: no such host; ask a@b",
    ):
        assert secrets.redact(plain) == plain
    for url in ("http://me:1234@h/x", "postgresql://me:12 34@h/db", "mysql://me:1/2 3@h/db"):
        assert re.sub("//me:.*@", "//me:***@", url) == secrets.redact(url)
    # Tokens, as the hub's client repeats them; words that only look like one are left.
    for token in ("hf_" + "a1" * 17, "https://a1b2c3@h/x", "b'Bearer " + "x" * 40 + "'"):
        assert "***" in secrets.redact(f"refused {token}")
    for plain in ("a ring bearer walks", "hf_datasets/hf_hub_download", "HF_HUB_OFFLINE is set"):
        assert secrets.redact(plain) == plain
    secrets.know(["Zaphod\x0bB"])
    assert secrets.redact(repr("Zaphod\x0bB") + "Zaphod\x0bB") == "'***'***"
    # Where one URL ends the next begins: a port is no password.
    two = "http://h:80/x, postgresql://me:hunter2 se@cret@h:1/db and mysql://a:hunter2@h/db"
    hidden = "http://h:80/x, postgresql://me:***@h:1/db and mysql://a:***@h/db"
    assert secrets.redact(two) == hidden
    # What was typed is hidden whatever is made of it; what was not is left alone.
    assert secrets.redact("hunter2secret") == "hunter2secret"
    secrets.remember(["--storage=postgresql://me:hunter2secret@h/db"])
    assert secrets.redact("it said hunter2secret") == "it said ***"


def test_the_texts_of_json_are_looked_at_one_by_one(capsys):
    secrets.remember(["postgresql://me:8000@h/db"])
    shown = {"url": "http://h:80/x", "n": 8000, "of": [URLS[0], "a@b"], URLS[1]: None}
    Output(as_json=True).finish(shown)
    said = capsys.readouterr().out
    user = "postgresql://me:***@h/db"
    expected = {**shown, "of": ["postgresql://me@corp:***@h/db", "a@b"], user: None}
    del expected[URLS[1]]
    assert json.loads(said) == expected


def test_ctrl_c_before_a_search_begins_repeats_no_password(monkeypatch):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(_app, "import_module", interrupted)
    ran = call("search", "--storage", URLS[0])
    assert (ran.status, ran.err) == (130, "interrupted; the same command resumes\n")
    ran = call("search", "--keep", "0.25")
    assert ran.err == "interrupted; the same command resumes: prunetune search --keep 0.25\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_escape_sequences_and_long_texts_are_cut(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('{"format": "\\u001b[31m' + "a" * 3_000_000 + '"}')
    line = refused("verify", path)
    assert "\x1b" not in line
    assert len(line) < 2000
    assert "\x1b" not in call("verify", "a\x1b[31m").err


def test_a_port_that_is_no_number_is_one_line():
    with pytest.raises(Exception, match="no database URL") as error:
        open_storage("postgresql://me:hunter2secret@h:port/db")
    assert "hunter2" not in str(error.value)
