"""What holds for every test: no network, one thread a process, reproducible random examples."""

import gc
import os
import signal
import socket
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from first_families import further
from hypothesis import HealthCheck, settings

# Two busy cores make any deadline a coin toss. CI must not fail on a draw that nobody made before.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("here"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # Started with `&` by a shell: the searches that tests interrupt would inherit deaf ears.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests of an unreachable hub need the code that would reach for it.
os.environ.pop("HF_HUB_OFFLINE", None)

# Tests and helpers find each other by name, in whatever room they are: no two have the same one.
HERE = Path(__file__).parent
sys.path += sorted({str(path.parent) for path in HERE.rglob("test_*.py")} - {*sys.path})

LOCAL = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "", None}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark cases that can wait, and put files with slow tests first.

    Started last, those would leave the other core idle.
    """
    mark_further(items)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def mark_further(items):
    """Mark what other families than the first show of a test that runs for every family."""
    given = [getattr(item, "callspec", None) for item in items]
    cases = [
        (item.nodeid.partition("[")[0], () if spec is None else spec.params.values())
        for item, spec in zip(items, given, strict=True)
    ]
    for item, waits in zip(items, further(cases), strict=True):
        if waits:
            item.add_marker("further")


def pytest_collection_finish():
    """What torch and transformers have loaded stays: a garbage collector need not visit it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_secrets():
    """Passwords that one test typed are words of others."""
    from prunetune import secrets

    yield
    secrets.forget()


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Fail at once, and in the same way everywhere, where a test would reach the network."""
    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def local_connect(self, address):
        if self.family != socket.AF_UNIX and address[0] not in LOCAL:
            raise OSError(f"tests have no network: connect to {address}")
        return connect(self, address)

    def local_resolve(host, *args, **kwargs):
        if host not in LOCAL:
            raise socket.gaierror(f"tests have no network: look-up of {host!r}")
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", local_connect)
    monkeypatch.setattr(socket, "getaddrinfo", local_resolve)
