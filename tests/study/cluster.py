"""A PostgreSQL of its own, and light workers that are started, killed and counted."""

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

import sqlalchemy
from fakes import Fake, spec
from optuna.trial import TrialState

from prunetune.study.database import connect, leases, postgres
from prunetune.study.study import run_trials
from prunetune.study.trials import loop

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
# What PostgreSQL's driver says of a server that is not there, or not yet.
AWAY = ("Connection refused", "starting up", "shutting down", "server closed", "terminating")
# What a search imports when it first needs it: half of what a worker that is soon killed would do.
LAZY = (
    "alembic.command",
    "optuna.storages._rdb.models",
    "prunetune.families.llava_next",
    "prunetune.scorers.topv",
    "psycopg",
    "scipy.stats",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite",
)


def binaries():
    """Return PostgreSQL's programs' folder, or None."""
    try:
        found = subprocess.check_output(["pg_config", "--bindir"], text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    folder = Path(found.strip())
    return folder if (folder / "initdb").exists() and (folder / "pg_ctl").exists() else None


class Postgres:
    """A cluster in a folder of its own, on a free port of the loopback."""

    def __init__(self):
        # Not pytest's folder: every pytest that starts closes it to other users, and the server
        # refuses to run as root.
        self.folder = Path(tempfile.mkdtemp(prefix="prunetune-postgres-"))
        self.binaries = binaries()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"postgresql://postgres:se%40cret@127.0.0.1:{self.port}/postgres"

    def __enter__(self):
        if os.getuid() == 0:
            shutil.chown(self.folder, "postgres")
        password = self.folder / "password"
        password.write_text("se@cret")
        password.chmod(0o644)
        data = str(self.folder / "data")
        options = ["--username=postgres", "--auth=scram-sha-256", f"--pwfile={password}"]
        self._run("initdb", "--pgdata", data, "--no-sync", *options)
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "fsync": "off",
            "log_statement": "none",
        }
        self._options = " ".join(f"-c {name}='{value}'" for name, value in settings.items())
        self.start()
        return self

    def __exit__(self, *error):
        try:
            self.stop("immediate")
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def start(self):
        log = str(self.folder / "log")
        self._ctl("start", "--log", log, "--options", self._options, "--wait", "--timeout=120")

    def stop(self, mode="fast"):
        self._ctl("stop", "--mode", mode, "--wait", "--timeout=120")

    def restart(self, seconds):
        self.stop()
        time.sleep(seconds)
        self.start()

    def create(self, name):
        """Make a further database."""
        url = self.url.replace("postgresql://", "postgresql+psycopg://")
        engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
        engine.dispose()

    def freeze(self, number=signal.SIGSTOP):
        """Stop the server and all its processes where they are; SIGCONT lets them go on."""
        main = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        tasks = Path(f"/proc/{main}/task/{main}/children").read_text().split()
        for pid in (main, *map(int, tasks)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _ctl(self, verb, *options):
        self._run("pg_ctl", verb, "--pgdata", str(self.folder / "data"), *options)

    def _run(self, program, *args):
        command = [str(self.binaries / program), *args]
        if os.getuid() == 0:
            command = ["runuser", "-u", "postgres", "--", *command]
        # pg_ctl's server keeps what it inherits: a pipe would never end.
        with open(self.folder / "pg_ctl.log", "ab") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log, cwd="/", timeout=180)


class SlowFake(Fake):
    """A model whose samples take some milliseconds."""

    def __init__(self, seconds):
        super().__init__(count=24)
        self.seconds = seconds

    def evaluate(self, config, *, answers=True):
        for batch in super().evaluate(config, answers=answers):
            time.sleep(self.seconds)
            yield batch


def work(url, out, trials, number, remote, seconds, hurried=False):
    """What a worker process does; whether a ``remote`` one lives is not seen from others."""
    os.setsid()
    random.seed(os.urandom(8))
    connect.HEARTBEAT_SECONDS, connect.GRACE_SECONDS = 1, 5
    loop._LONGEST_PAUSE = 0.5
    if hurried:
        postgres.CONNECT_SECONDS, postgres.ANSWER_SECONDS, connect.PATIENCE_SECONDS = 2, 1.0, 1.5
    if remote:
        leases._home = lambda: f"machine-{os.getpid()}"
    log = open(Path(out) / f"worker-{os.getpid()}.log", "w")  # noqa: SIM115
    os.dup2(log.fileno(), 2)
    fields = {"trials": trials, "trial_pruner": "wilcoxon", "seed": 3}
    run_trials(
        spec(**fields), SlowFake(seconds), out=Path(out), storage=url, worker=number, records=False
    )


class Team:
    """Worker processes; a killed one is replaced."""

    def __init__(self, count, url, out, *, trials, remote, seconds=0.01, hurried=False):
        # One process imports everything, workers fork from it: that is what makes them light.
        here = Path(__file__).parent
        os.environ["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parent)])
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["cluster", *LAZY])
        self._arguments = (url, str(out), trials)
        self._remote, self._seconds, self._hurried = remote, seconds, hurried
        self.killed, self.crashed, self.refused = 0, 0, 0
        self._out = Path(out)
        self.processes = [self._start(number) for number in range(count)]

    def _start(self, number):
        remote = self._remote and number % 2 == 1
        arguments = (*self._arguments, number, remote, self._seconds, self._hurried)
        process = self._context.Process(target=work, args=arguments)
        process.start()
        return process

    def kill_one(self):
        """Kill a worker that works, at whatever it is just doing, and start another."""
        alive = [i for i, process in enumerate(self.processes) if process.exitcode is None]
        if not alive:
            return
        index = random.choice(alive)
        os.kill(self.processes[index].pid, signal.SIGKILL)
        self.processes[index].join()
        self.killed += 1
        self.processes[index] = self._start(index)

    def replace_crashed(self):
        """Start anew what failed, as a batch system would."""
        for index, process in enumerate(self.processes):
            if process.exitcode not in (None, 0):
                # A command that is started while the database is away says so at once. Nothing
                # else is a reason to refuse one.
                said = (self._out / f"worker-{process.pid}.log").read_text()
                away = any(word in said for word in AWAY)
                if "StudyError: cannot use the study database" in said and away:
                    self.refused += 1
                else:
                    self.crashed += 1
                    print(said[-2000:])
                self.processes[index] = self._start(index)

    @property
    def ended(self):
        return all(process.exitcode == 0 for process in self.processes)

    def end(self):
        """Leave nothing behind, whatever happened."""
        for process in self.processes:
            if process.exitcode is None:
                process.kill()
            process.join()


def check(trials, wanted):
    """Assert that a study has exactly the wanted trials, each once, and none left running."""
    states = Counter(trial.state for trial in trials)
    assert states[TrialState.COMPLETE] + states[TrialState.PRUNED] == wanted, states
    assert states[TrialState.RUNNING] == 0, states
    numbers = [trial.number for trial in trials]
    assert numbers == list(range(len(trials))), "a trial number is missing or used twice"
    measured = Counter(
        trial.user_attrs["config_digest"]
        for trial in trials
        if trial.state in FINISHED and "repeats" not in trial.user_attrs
    )
    assert max(measured.values()) == 1, "a config was measured under two finished trials"
    presets = {}
    for trial in trials:
        name = trial.user_attrs.get("preset")
        died = len(trial.system_attrs.get("retry_history", ()))
        presets[name] = presets.get(name, False) or trial.state in FINISHED or died >= 2
    assert all(presets.values()), f"a preset was queued and lost: {presets}"
    for trial in trials:
        if trial.state in FINISHED:
            assert trial.user_attrs["samples_used"] >= 1
            assert trial.value is not None
    return states
