"""Files appear whole or not at all, also those of writers that want a path."""

import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from prunetune.files import appearing, is_database, open_plain, read_plain, write_atomically
from training.tiny import optimiser
from training.tiny.optimiser import Optimiser


class Stopped(BaseException):
    """As hard as KeyboardInterrupt."""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "new" / "weights.safetensors"
    with appearing(path) as beside:
        save_file({"x": torch.arange(3)}, beside)
        assert not path.exists()
        assert beside.parent == path.parent
    assert load_file(path)["x"].tolist() == [0, 1, 2]
    assert names(path.parent) == ["weights.safetensors"]


def half_a_file(path, error):
    with appearing(path) as beside:
        beside.write_bytes(b"ha")
        raise error


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def masked():
    """Sets the umask, and back at the end."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize(
    ("mask", "mode"), [(0o077, 0o600), (0o002, 0o664), (0o022, 0o644), (0o027, 0o640)]
)
def test_a_new_file_is_for_whom_the_umask_says(tmp_path, masked, mask, mode):
    """Red while all were 0644: read by everybody, and out of the group's hands."""
    masked(mask)
    plain, link = tmp_path / "plain", tmp_path / "link"
    plain.write_bytes(b"x")
    link.symlink_to(tmp_path / "private")
    (tmp_path / "private").write_bytes(b"x")
    (tmp_path / "private").chmod(0o400)
    with appearing(tmp_path / "weights") as beside:
        save_file({"x": torch.arange(3)}, beside)
    with appearing(tmp_path / "other") as beside:
        # A writer that puts a file of its own there.
        (tmp_path / "own").write_bytes(b"x")
        (tmp_path / "own").chmod(0o600)
        (tmp_path / "own").replace(beside)
    made = [write_atomically(tmp_path / "ours", b"x"), tmp_path / "weights", tmp_path / "other"]
    for path in (plain, *made, write_atomically(link, b"x")):
        assert (path.name, mode_of(path)) == (path.name, mode)
    assert mode_of(tmp_path / "private") == 0o400
    # The twin: what is there keeps its own, and is nobody else's while it is written either.
    for kept in (0o600, 0o640, 0o666, 0o444):
        plain.chmod(kept)
        with appearing(plain) as beside:
            assert mode_of(beside) & ~kept & 0o177 == 0
            beside.write_bytes(b"y")
        assert (mode_of(plain), plain.read_bytes()) == (kept, b"y")


@pytest.mark.parametrize("error", [OSError, Stopped])
def test_what_fails_half_way_leaves_the_old_file_alone(tmp_path, error):
    path = write_atomically(tmp_path / "a.txt", b"old")
    with pytest.raises(error):
        half_a_file(path, error)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.txt"]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    order = []
    real_sync, real_replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("sync"), real_sync(handle))[1])
    monkeypatch.setattr(
        Path, "replace", lambda self, to: (order.append("name"), real_replace(self, to))[1]
    )
    write_atomically(tmp_path / "a", b"x")
    assert order == ["sync", "name"]


def test_a_checkpoint_of_the_training_too(tmp_path, monkeypatch):
    """Red while it had a writer of its own: that left half a file beside."""
    path = tmp_path / "checkpoint.safetensors"
    one = Optimiser([("w", nn.Parameter(torch.ones(2)))], rate=0.1, slow=1.0)
    one.save(path, {"step": 1.0})
    before = path.read_bytes()

    def half(tensors, where, metadata):
        Path(where).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(optimiser, "save_file", half)
        with pytest.raises(OSError, match="No space"):
            one.save(path, {"step": 2.0})
    assert names(tmp_path) == [path.name]
    assert path.read_bytes() == before
    one.save(path, {"step": 3.0})
    assert path.read_bytes() != before


@pytest.mark.parametrize(
    ("content", "is_one"),
    [(b"", True), (b"{", False), (b'{"format": "prunetune.config"}', False), (b"x" * 9999, False)],
)
def test_what_can_be_a_database(tmp_path, content, is_one):
    (tmp_path / "a").write_bytes(content)
    assert is_database(tmp_path / "a") is is_one


OTHER = """
import sqlite3, sys
other = sqlite3.connect(sys.argv[1])
other.execute("SELECT * FROM t").fetchall()
other.close()
"""


@pytest.mark.parametrize("looks", [is_database, Path.read_bytes], ids=["sqlite", "twin"])
def test_a_look_at_a_database_leaves_this_process_its_locks(tmp_path, looks):
    """Without them another process removes the write-ahead log that is in use here."""
    path = tmp_path / "it's 100% a?study#.db"
    with closing(sqlite3.connect(path)) as mine:
        mine.execute("PRAGMA journal_mode=WAL")
        mine.execute("CREATE TABLE t (x)")
        mine.commit()
        looks(path)
        subprocess.run([sys.executable, "-c", OTHER, str(path)], check=True, timeout=60)
        assert path.with_name(f"{path.name}-wal").exists() is (looks is is_database)


def test_a_study_can_be_found_where_it_is_being_searched(tmp_path):
    from prunetune.study.database.connect import open_storage
    from prunetune.study.database.urls import DATABASE
    from prunetune.study.find import locate

    storage = open_storage(f"sqlite:///{tmp_path / DATABASE}")
    assert locate(str(tmp_path))[1] == tmp_path
    other = OTHER.replace(' t"', ' studies"')
    file = tmp_path / DATABASE
    subprocess.run([sys.executable, "-c", other, str(file)], check=True, timeout=60)
    assert file.with_name(f"{DATABASE}-wal").exists()
    storage.engine.dispose()


def test_what_is_no_plain_file_is_neither_replaced_nor_read(tmp_path):
    fifo, link, folder = tmp_path / "fifo", tmp_path / "link", tmp_path / "folder"
    os.mkfifo(fifo)
    link.symlink_to("/dev/null")
    folder.mkdir()
    for path in (fifo, link, folder, Path("/dev/null")):
        with pytest.raises(OSError, match="not a plain file, so it is not replaced"):
            write_atomically(path, b"new")
        with pytest.raises(OSError, match=r"plain file|directory"):
            read_plain(path)
        # A pipe without a reader has no such address.
        with pytest.raises(OSError, match=r"plain file|directory|address"):
            open_plain(path, os.O_WRONLY | os.O_APPEND)
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    assert link.is_symlink()
    # The twin: a plain file is both, and keeps its mode.
    file = tmp_path / "file"
    file.write_bytes(b"old")
    file.chmod(0o600)
    assert write_atomically(file, b"new").stat().st_mode & 0o777 == 0o600
    with open_plain(file, os.O_WRONLY | os.O_APPEND) as more:
        more.write(b"er")
    assert read_plain(file) == b"newer"
    with pytest.raises(OSError, match="larger"):
        read_plain(file, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"fifo", "link", "folder", "file"}
