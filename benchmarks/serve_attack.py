"""`prunetune serve` under attack: many clients, a third of them malformed, slow or gone again.

    python benchmarks/serve_attack.py --minutes 10 --clients 20

It starts the command on the embedded model, lets every client ask for the given time, and ends the
server with SIGTERM while they ask. It holds, or says what does not and ends with status 1: right
answers throughout (equal to those of a quiet server), everything malformed is answered 400 in
OpenAI's form, `/health` within 5 seconds, memory stays flat, SIGTERM ends it in 10 seconds.
"""

import argparse
import base64
import contextlib
import http.client
import io
import json
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from prunetune.calibration import load_calibration
from prunetune.config import PruningConfig
from prunetune.presets import load_preset

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}


def question(sample, words=8):
    """A chat request of a sample."""
    picture = io.BytesIO()
    next(iter(sample.images)).save(picture, "PNG")
    url = "data:image/png;base64," + base64.b64encode(picture.getvalue()).decode()
    return asked(url, sample.question, words)


def asked(url, text="what is it ?", words=8):
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return {"model": "tiny", "messages": [{"role": "user", "content": parts}], "max_tokens": words}


class Attack:
    """Clients of one server, and what they saw."""

    def __init__(self, port, samples, seed):
        self.port, self.seed = port, seed
        self.questions = [question(sample) for sample in samples]
        self.seen, self.wrong = Counter(), []
        self.slowest_health = 0.0
        self.over = threading.Event()
        self.ending = False
        # A host that accepts and never answers.
        self.silent = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.right = [self.answer(q) for q in self.questions]

    def connect(self, timeout=120):
        """Open a connection."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def post(self, body, path=CHAT, headers=JSON):
        """Return status and body of an answer."""
        connection = self.connect()
        try:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            connection.request("POST", path, data, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def answer(self, said):
        """Return what the model says."""
        status, text = self.post(said)
        assert status == 200, text
        return json.loads(text)["choices"][0]["message"]["content"]

    def good(self, dice):
        """Ask, and compare the answer."""
        k = dice.randrange(len(self.questions))
        stream = dice.random() < 0.5
        status, text = self.post({**self.questions[k], "stream": stream})
        if status == 429 or (status == 503 and self.ending):
            self.seen[f"{status}, as it should"] += 1
            return
        if status == 200 and stream:
            lines = [line[6:] for line in text.decode().split("\n") if line.startswith("data: {")]
            events = [json.loads(line) for line in lines]
            if self.ending and any("error" in event for event in events):
                # What is cut short by the end says so.
                self.seen["cut, and said"] += 1
                return
            deltas = [event["choices"][0]["delta"] for event in events]
            found = "".join(delta.get("content") or "" for delta in deltas)
        else:
            found = json.loads(text)["choices"][0]["message"]["content"] if status == 200 else text
        self.seen["right" if found == self.right[k] else "WRONG ANSWER"] += 1
        if found != self.right[k]:
            self.wrong.append(f"received {status} {str(found)[:200]}, right is {self.right[k]!r}")

    def malformed(self, dice):
        """Send what has to be refused."""
        name, body = dice.choice(malformed(self.port, self.silent.getsockname()[1]))
        status, text = self.post(body)
        if status == 503 and self.ending:
            self.seen["503, as it should"] += 1
        elif status in (400, 413, 429) and "message" in json.loads(text)["error"]:
            self.seen["malformed, refused"] += 1
        else:
            self.seen["MALFORMED, NOT REFUSED"] += 1
            self.wrong.append(f"{name}: {status} {text[:200]!r}")

    def slow(self, dice):
        """Send a request's first bytes, and the rest much later or never."""
        data = json.dumps(dice.choice(self.questions)).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as client:
            client.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data[:100])
            self.over.wait(dice.uniform(0.5, 3.0))
            if dice.random() < 0.5:
                client.sendall(data[100:])
                # The answer is never read.
                self.over.wait(0.5)
        self.seen["slow"] += 1

    def cancelled(self, dice):
        """Leave in the middle of an answer that would be long."""
        said = {**dice.choice(self.questions), "max_tokens": 4000, "stream": dice.random() < 0.7}
        connection = self.connect()
        connection.request("POST", CHAT, json.dumps(said), JSON)
        if dice.random() < 0.5:
            connection.sock.settimeout(5)
            with contextlib.suppress(TimeoutError):
                connection.sock.recv(200)
        connection.close()
        self.seen["cancelled"] += 1

    def client(self, number):
        """Ask until it is over."""
        dice = random.Random(self.seed * 1000 + number)
        while not self.over.is_set():
            kind = self.good
            if dice.random() < 0.3:
                kind = dice.choice([self.malformed, self.slow, self.cancelled])
            try:
                kind(dice)
            except (OSError, http.client.HTTPException) as error:
                if self.ending:
                    return
                self.seen["NO ANSWER"] += 1
                self.wrong.append(f"{kind.__name__}: {type(error).__name__}: {error}")

    def watch_health(self):
        """Ask for /health all the time."""
        while not self.over.wait(0.25):
            begun = time.monotonic()
            try:
                connection = self.connect(30)
                connection.request("GET", "/health")
                assert connection.getresponse().status == 200
                connection.close()
            except (OSError, http.client.HTTPException, AssertionError):
                if not self.ending:
                    self.wrong.append("/health did not answer")
            else:
                self.slowest_health = max(self.slowest_health, time.monotonic() - begun)


def malformed(port, silent):
    """Requests that are refused, by what is wrong with them."""
    user = [{"role": "user", "content": "x"}]
    deep = b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}"
    return [
        ("no messages", {"model": "tiny"}),
        ("negative max_tokens", {"messages": user, "max_tokens": -5}),
        ("literal <image>", {"messages": [{"role": "user", "content": "what <image> is"}]}),
        ("wrong type", {"messages": "hello"}),
        ("not JSON", b"{"),
        ("lone surrogate", b'{"messages": [{"role": "user", "content": "\\ud83d"}]}'),
        ("deep", deep),
        ("own address", asked(f"http://127.0.0.1:{port}/health")),
        ("silent host", asked(f"http://127.0.0.1:{silent}/x.png")),
        ("file", asked("file:///etc/passwd")),
        ("path", asked("/etc/passwd")),
        ("no picture", asked("data:image/png;base64," + base64.b64encode(b"x" * 99).decode())),
        ("too large", b'{"x": "' + b"a" * (33 << 20) + b'"}'),
        ("NaN", b'{"messages": [], "temperature": NaN}'),
    ]


def memory_of(pid):
    """Resident MiB of a process."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def main(minutes, clients, seed, out):
    samples = load_calibration("tiny", samples=8)[0]
    found, _ = load_preset("topv", model_type="llava_next", num_layers=16, keep=0.2)
    config = PruningConfig.parse(found.model_dump() | {"model": found.model.model_dump()})
    with tempfile.TemporaryDirectory() as folder:
        path = config.save(Path(folder) / "c.json")
        words = ["serve", path, "--model", "tiny", "--port", "0", "--threads", "1"]
        process = subprocess.Popen(
            [sys.executable, "-m", "prunetune", *words, "--allow-private-hosts"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            told = attack(process, samples, minutes, clients, seed)
        finally:
            process.kill()
    for line in told["wrong"]:
        print(line)
    print("\n".join(f"{name:26} {value}" for name, value in told.items() if name != "wrong"))
    if out:
        Path(out).write_text(json.dumps(told))
    return 0 if told["holds"] else 1


def attack(process, samples, minutes, clients, seed):
    port = int(re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())[1])
    state = Attack(port, samples, seed)
    threads = [threading.Thread(target=state.client, args=(k,)) for k in range(clients)]
    threads.append(threading.Thread(target=state.watch_health))
    for thread in threads:
        thread.daemon = True
        thread.start()
    memory = []
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end and process.poll() is None:
        time.sleep(min(1.0, 6 * minutes))
        memory.append(memory_of(process.pid))
    state.ending = True
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    seconds = time.monotonic() - begun
    state.over.set()
    for thread in threads:
        thread.join(10)
    # What the first requests of every kind allocate is no leak: from a fifth of the time on.
    early, late = memory[len(memory) // 5], max(memory[-max(1, len(memory) // 5) :])
    holds = (
        not state.wrong
        and state.slowest_health < 5
        and late < 1.1 * early
        and seconds < 10
        and process.returncode == 0
    )
    return {
        "wrong": [*state.wrong[:20], *errors.splitlines()[-5:]],
        "minutes": minutes,
        "clients": clients,
        **dict(sorted(state.seen.items())),
        "memory, MiB": f"{early:.0f} -> {late:.0f}",
        "memory's growth": round(late / early - 1, 3),
        "slowest /health, s": round(state.slowest_health, 3),
        "SIGTERM, s": round(seconds, 2),
        "exit status": process.returncode,
        "traceback in stderr": "Traceback" in errors,
        "holds": holds and "Traceback" not in errors,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="a JSON file of the figures")
    arguments = parser.parse_args()
    sys.exit(main(arguments.minutes, arguments.clients, arguments.seed, arguments.out))
