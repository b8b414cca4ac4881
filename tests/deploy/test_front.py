"""What stands before a served model: requests are bounded, checked, and keep nobody waiting."""

import base64
import http.client
import io
import ipaddress
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from PIL import Image

from prunetune.models import load_model

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from prunetune.deploy.front.addresses import Forbidden, is_public, resolve
from prunetune.deploy.front.hosts import Hosts
from prunetune.deploy.front.limits import Limits
from prunetune.deploy.serve import Server, pruned_app

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
LIMITS = Limits(
    body=1 << 20, body_seconds=1.0, waiting=1, picture_seconds=0.5, pixels=1 << 20, text=1 << 12
)


class Running:
    """A server in a thread, asked over sockets."""

    def __init__(self, loaded, config, limits):
        self.app, self._handle = pruned_app(loaded, config, "tiny", limits=limits)
        self.server = Server(self.app, port=0)
        self.port = int(self.server.url.rpartition(":")[2])
        self._thread = threading.Thread(target=self.server.serve)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self.server.stop()
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._handle.remove()

    def send(self, method, path, body=None, headers=JSON):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        connection.request(method, path, data, headers)
        return connection

    def ask(self, body=None, path=CHAT, method="POST", headers=JSON):
        connection = self.send(method, path, body, headers)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        return answer.status, text

    def metric(self, name):
        lines = self.ask(method="GET", path="/metrics")[1].decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


@pytest.fixture(scope="module")
def server(loaded, config):
    with Running(loaded, config, LIMITS) as running:
        yield running


def png(size=(64, 64), color="red"):
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


def uri(data, kind="png"):
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def asked(url, text="what color is it ?", **more):
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return {"messages": [{"role": "user", "content": parts}], "max_tokens": 4, **more}


def said(content, **more):
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 4, **more}


CALL = {"name": "f", "arguments": "not JSON"}
MALFORMED = {
    "no body": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "latin-1": b'{"messages": "\xe9"}',
    "NaN": b'{"messages": [], "temperature": NaN}',
    "5,000 digits": b'{"seed": ' + b"9" * 5000 + b"}",
    "1e999": b'{"temperature": 1e999}',
    "deep": b'{"messages": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "half a pair": b'{"messages": [{"role": "user", "content": "\\ud83d"}]}',
    "half a key": b'{"\\udc00": 1, "messages": [{"role": "user", "content": "x"}]}',
    "no messages": {"model": "tiny"},
    "empty messages": {"messages": []},
    "text for messages": {"messages": "x"},
    "null message": {"messages": [None]},
    "no role": {"messages": [{"content": "x"}]},
    "unknown role": {"messages": [{"role": "root", "content": "x"}]},
    "no content": {"messages": [{"role": "user"}]},
    "number for content": said(5),
    "no type": said([{"text": "x"}]),
    "unknown type": said([{"type": "video_url", "video_url": {"url": "file:///etc/passwd"}}]),
    "text is null": said([{"type": "text", "text": None}]),
    "url is null": said([{"type": "image_url", "image_url": {"url": None}}]),
    "url is a list": said([{"type": "image_url", "image_url": ["x"]}]),
    "placeholder": said("what <image> is"),
    "placeholder in a tool": said("x", tools=[{"function": {"name": "<image>"}}]),
    "arguments": {"messages": [{"role": "assistant", "tool_calls": [{"function": CALL}]}]},
    "negative": said("x") | {"max_tokens": -1},
    "zero": said("x") | {"max_tokens": 0},
    "text for a number": said("x") | {"max_tokens": "9"},
    "true for a number": said("x") | {"max_tokens": True},
    "temperature": said("x", temperature=-1),
    "temperature, too small": said("x", temperature=1e-30),
    "top_p": said("x", top_p=2),
    "seed": said("x", seed=2**70),
    "penalty": said("x", frequency_penalty=-1),
    "bias": said("x", logit_bias={"a": 1}),
    "bias of no token": said("x", logit_bias={"999999": 1}),
    "stop": said("x", stop=[5]),
    "n": said("x", n=5),
    "stream": said("x", stream="yes"),
    "tools": said("x", tools="x"),
    "unknown field": said("x", wings=2),
    "response_format": said("x", response_format={"type": "json_object"}),
    "logprobs": said("x", logprobs=True),
    "top_logprobs": said("x", top_logprobs=3),
    "tool_choice": said("x", tool_choice="required"),
    "presence_penalty": said("x", presence_penalty=1.0),
    "other model": said("x", model="gpt"),
    "config, no JSON": said("x", generation_config="{"),
    "config, many rows": said("x", generation_config='{"num_return_sequences": 999}'),
    "template": said("x", chat_template_kwargs={"chat_template": "{{ 1 }}"}),
    "long text": said("x" * 5000),
    "path": asked("/etc/passwd"),
    "file": asked("file:///etc/passwd"),
    "ftp": asked("ftp://example.org/x.png"),
    "not base64": asked("data:image/png;base64,@@@"),
    "no picture": asked(uri(b"x" * 100)),
    "half a picture": asked(uri(png()[:60])),
    "EPS": asked(uri(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "eps")),
    "bomb": asked(uri(png((3000, 3000)))),
    "loopback": asked("http://127.0.0.1:1/x.png"),
    "loopback as a number": asked("http://2130706433/x.png"),
    "localhost": asked("http://localhost:1/x.png"),
    "link-local": asked("http://169.254.169.254/latest/meta-data"),
    "private": asked("http://10.0.0.1/x.png"),
    "mapped": asked("http://[::ffff:127.0.0.1]/x.png"),
    "password": asked("http://u:secret@93.184.216.34/x.png"),
    "port": asked("http://93.184.216.34:99999999/x.png"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_malformed_is_400_with_openais_error(server, name, caplog):
    status, text = server.ask(MALFORMED[name])
    assert status == 400, text
    error = json.loads(text)["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"].isprintable()
    assert 10 < len(error["message"]) <= 500
    assert set(error) == {"message", "type", "param", "code"}
    assert "secret" not in error["message"]
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/completions"])
def test_other_routes_are_checked_too(server, path):
    field = "input" if path.endswith("responses") else "prompt"
    for wrong in ({}, {field: 5}, {field: []}, {field: "a <image>"}, {field: [{"type": "x"}]}):
        status, text = server.ask(wrong, path)
        assert (status, "message" in json.loads(text)["error"]) == (400, True), text
    # The twin: what is right is answered.
    right = {field: "what is it ?", "max_output_tokens" if field == "input" else "max_tokens": 2}
    for more in ({}, {"stream": None}, {"stream": True}):
        status, text = server.ask({**right, **more}, path)
        assert status == 200, text
        ends = text.endswith(b"\n\ndata: [DONE]\n\n")
        assert ends == (more.get("stream") is True and field == "prompt"), text
        # Whole unless a stream was asked for.
        assert text.startswith(b"data: " if more.get("stream") else b"{"), text


def test_what_is_right_is_answered(server):
    status, text = server.ask(asked(uri(png())))
    assert status == 200, text
    answer = json.loads(text)["choices"][0]["message"]["content"]
    assert answer
    assert json.loads(text)["model"] == "tiny"
    plain = {"response_format": {"type": "text"}, "logprobs": False, "presence_penalty": 0.0}
    for more in ({"temperature": 0, "seed": 3, "n": 1}, {"stop": "zzz"}, {"user": "me"}, plain):
        status, text = server.ask(asked(uri(png()), **more))
        assert json.loads(text)["choices"][0]["message"]["content"] == answer
    stopped = json.loads(server.ask(asked(uri(png()), stop=[answer[:2]]))[1])
    assert stopped["usage"]["completion_tokens"] == 1
    assert server.metric('prunetune_tokens_total{kind="visual_kept"}') > 0
    kept, all_of_them = (
        server.metric(f'prunetune_tokens_total{{kind="{kind}"}}')
        for kind in ("visual_kept", "visual")
    )
    assert kept / all_of_them < 0.3


def test_a_body_too_large_or_too_slow_is_refused(server):
    status, text = server.ask(b'{"x": "' + b"a" * (2 << 20) + b'"}')
    assert (status, json.loads(text)["error"]["code"]) == (413, "too_large")
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        assert b" 408 " in client.recv(1000)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        part = b"100000\r\n" + b"a" * (1 << 20) + b"\r\n"
        client.sendall(2 * part + b"0\r\n\r\n")
        assert b" 413 " in client.recv(1000)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/nothing", {}, 404),
        ("GET", CHAT, {}, 405),
        ("POST", "/health", JSON, 405),
        ("POST", CHAT, {"Content-Type": "text/plain"}, 415),
        ("GET", "/health", {"Host": "evil.example"}, 403),
        ("GET", "/health", {"Host": "127.0.0.1.evil.example:80"}, 403),
        ("GET", "/health", {"Host": "localhost:1"}, 200),
        ("GET", "/metrics", {}, 200),
        ("GET", "/v1/models", {}, 200),
        ("GET", "/v1/models/tiny", {}, 200),
        ("GET", "/v1/models/other", {}, 404),
        ("HEAD", "/health", {}, 200),
        ("HEAD", CHAT, {}, 405),
    ],
)
def test_who_asks_what(server, method, path, headers, status):
    found, text = server.ask(b"{}" if method == "POST" else None, path, method, headers)
    assert found == status
    assert status == 200 or method == "HEAD" or json.loads(text)["error"]["message"]


def test_names_that_a_server_has():
    assert not Hosts("127.0.0.1").allow("a.example")
    assert not Hosts("127.0.0.1").allow(None)
    assert Hosts("127.0.0.1", ["a.example"]).allow("A.example.:8000")
    assert Hosts("0.0.0.0", ["*"]).allow("any")
    assert Hosts("0.0.0.0").allow("[::1]:8000")
    assert Hosts("0.0.0.0").allow("192.0.2.7")


NOT_PUBLIC = (
    "127.0.0.1 0.0.0.0 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 224.0.0.1 "
    "240.0.0.1 255.255.255.255 ::1 :: fe80::1 fe80::1%eth0 fc00::1 ff02::1 ::ffff:10.0.0.1 "
    "::127.0.0.1 64:ff9b::7f00:1 2002:7f00:1:: 2001:db8::1"
)


@pytest.mark.parametrize("text", NOT_PUBLIC.split())
def test_addresses_of_no_public_host(text):
    assert not is_public(ipaddress.ip_address(text))


def test_an_address_is_looked_up_once_and_has_to_be_public(monkeypatch):
    assert is_public(ipaddress.ip_address("93.184.216.34"))
    assert is_public(ipaddress.ip_address("2606:2800:220:1::1"))
    found = ["93.184.216.34", "127.0.0.1"]

    def look_up(host, port, **_):
        return [(0, 0, 0, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(Forbidden):
        resolve("rebinding.example", 80, private=False)
    assert resolve("rebinding.example", 80, private=True) == found[0]


class Host:
    """A host of pictures on this machine that behaves as told."""

    def __init__(self, *parts, pause=0.0):
        self._parts, self._pause = parts, pause
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/x.png"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client):
        with client:
            client.recv(4096)
            try:
                for part in self._parts:
                    client.sendall(part.replace(b"SELF", self.url.encode()))
                    threading.Event().wait(self._pause)
                if not self._parts:
                    client.recv(1)
            except OSError:
                return

    def __enter__(self):
        return self.url

    def __exit__(self, *error):
        self._socket.close()


OK = b"HTTP/1.1 200 OK\r\n\r\n"


def test_pictures_are_fetched_within_limits(config):
    limits = replace(LIMITS, private_hosts=True, picture=1 << 16)
    with Running(load_model("tiny"), config, limits) as server:
        with Host(OK, png()) as url:
            assert server.ask(asked(url))[0] == 200
        moved = b"HTTP/1.1 302 Found\r\nLocation: %s\r\n\r\n"
        for what, parts, pause in (
            ("not here after", (), 0),
            ("not here after", [b"H"] * 100, 0.05),
            ("larger", (OK, b"x" * (1 << 17)), 0),
            ("redirected", (moved % b"SELF",), 0),
            ("no http", (moved % b"file:///etc/passwd",), 0),
            ("answers 404", (b"HTTP/1.1 404 No\r\n\r\n",), 0),
            ("no picture", (OK, b"<html>"), 0),
        ):
            with Host(*parts, pause=pause) as url:
                begun = time.monotonic()
                status, text = server.ask(asked(url))
                assert status == 400, text
                assert what in json.loads(text)["error"]["message"]
                assert time.monotonic() - begun < 10
        # The server itself, which would wait for itself.
        assert server.ask(asked(f"{server.server.url}/health"))[0] == 400
        with Host() as url:
            waiting = [server.send("POST", CHAT, asked(url)) for _ in range(3)]
            assert server.ask(method="GET", path="/health")[0] == 200
            assert server.ask(asked(uri(png())))[0] == 200
            assert {c.getresponse().status for c in waiting} == {400}


NO_END = {"2": -100}


class Held:
    """Holds the model in its forward until it is let go."""

    def __init__(self, model):
        self.inside, self.go = threading.Event(), threading.Event()
        self._hook = model.register_forward_pre_hook(self._wait)

    def _wait(self, *_):
        self.inside.set()
        self.go.wait(30)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.go.set()
        self._hook.remove()


def test_while_the_model_works_others_are_answered_and_too_many_refused(server, loaded):
    said = asked(uri(png()))
    with Held(loaded.model) as held:
        first = server.send("POST", CHAT, said)
        assert held.inside.wait(30)
        second = server.send("POST", CHAT, said)
        while server.metric("prunetune_waiting") < 1:
            pass
        for path in ("/health", "/v1/models", "/prunetune"):
            assert server.ask(method="GET", path=path)[0] == 200
        status, text = server.ask(said)
        assert (status, json.loads(text)["error"]["code"]) == (429, "queue_full")
        held.go.set()
        assert [c.getresponse().status for c in (first, second)] == [200, 200]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_model(server, loaded, stream):
    before = server.metric('prunetune_tokens_total{kind="generated"}')
    left = server.metric("prunetune_cancelled_total")
    with Held(loaded.model) as held:
        # Words that never end the answer: without the client's leaving it would take minutes.
        endless = asked(uri(png()), logit_bias=NO_END, stream=stream) | {"max_tokens": 3000}
        connection = server.send("POST", CHAT, endless)
        assert held.inside.wait(30)
        connection.close()
        while server.metric("prunetune_cancelled_total") < left + 1:
            pass
        held.go.set()
        # The twin: who waited for the answer did not leave.
        for more in ({}, {"stream": True}):
            assert server.ask(asked(uri(png()), **more))[0] == 200
    assert server.metric("prunetune_cancelled_total") == left + 1
    made = server.metric('prunetune_tokens_total{kind="generated"}') - before
    assert made < 50


def test_sigterm_ends_it_whatever_runs(config, tmp_path):
    path = config.save(tmp_path / "c.json")
    words = ["serve", path, "--model", "tiny", "--port", "0", "--allow-private-hosts"]
    process = subprocess.Popen(
        [sys.executable, "-m", "prunetune", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        port = int(process.stdout.readline().partition("127.0.0.1:")[2].partition("/")[0])
        with Host() as url:
            clients = []
            for body in (asked(url), asked(uri(png()), stream=True) | {"max_tokens": 4000}, b"{"):
                client = http.client.HTTPConnection("127.0.0.1", port)
                data = body if isinstance(body, bytes) else json.dumps(body)
                client.putrequest("POST", CHAT)
                client.putheader("Content-Type", "application/json")
                client.putheader("Content-Length", str(len(data) + isinstance(body, bytes)))
                client.endheaders(data if isinstance(data, bytes) else data.encode())
                clients.append(client)
            # The second one's answer has begun.
            assert clients[1].getresponse().status == 200
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
            assert time.monotonic() - begun < 10
    finally:
        process.kill()
    assert (process.returncode, "Traceback" in errors) == (0, False), errors
