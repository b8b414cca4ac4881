"""``serve``: what OpenAI's API answers is what the pruned model generates."""

import base64
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest
from cli_runner import refused

import prunetune
from prunetune.calibration import encode, load_calibration
from prunetune.errors import ConfigError
from prunetune.models import load_model

pytest.importorskip("fastapi")

from prunetune.deploy import serve
from prunetune.deploy.serve import Server, pruned_app


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("log") / "requests.jsonl"


@pytest.fixture(scope="module")
def server(loaded, config, log):
    app, handle = pruned_app(loaded, config, "tiny", log=log)
    listening = Server(app, port=0)
    thread = threading.Thread(target=listening.serve)
    thread.start()
    yield listening
    listening.stop()
    thread.join()
    handle.remove()


def ask(server, path, body=None):
    """Return status and text of an answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def question(sample):
    picture = io.BytesIO()
    next(iter(sample.images)).save(picture, "PNG")
    url = "data:image/png;base64," + base64.b64encode(picture.getvalue()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": sample.question},
    ]
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 8}


def generated(loaded, sample):
    inputs = encode(loaded.processor, [sample])
    ids = loaded.model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return loaded.processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_answers_are_the_pruned_models(loaded, config, server):
    samples = load_calibration("tiny", samples=8)[0]
    bare = load_model("tiny")
    with prunetune.apply(bare.model, config):
        pruned = [generated(bare, sample) for sample in samples]
    answers = []
    for sample in samples:
        status, text = ask(server, "/v1/chat/completions", question(sample))
        assert status == 200
        answers.append(json.loads(text)["choices"][0]["message"]["content"])
        told = json.loads(ask(server, "/prunetune")[1])
        assert told["digest"] == config.digest()
        assert told["mean_retention"] == pytest.approx(0.2)
        (stage,) = told["last"]
        assert stage["after"][0] == pytest.approx(
            config.stages[0].retention * stage["before"][0], abs=1
        )
    assert answers == pruned
    # The twin: without pruning some answers are others.
    assert [generated(bare, sample) for sample in samples] != pruned


def test_an_answer_is_streamed(loaded, config, server):
    sample = load_calibration("tiny", samples=1)[0][0]
    whole = json.loads(ask(server, "/v1/chat/completions", question(sample))[1])
    status, text = ask(server, "/v1/chat/completions", question(sample) | {"stream": True})
    assert status == 200
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    parts = [event["choices"][0]["delta"].get("content") or "" for event in events]
    assert "".join(parts) == whole["choices"][0]["message"]["content"] != ""


def test_requests_at_the_same_time_get_their_own_answers(server):
    samples = load_calibration("tiny", samples=4)[0]

    def answer(sample, found):
        text = ask(server, "/v1/chat/completions", question(sample))[1]
        found[sample.digest()] = json.loads(text)["choices"][0]["message"]["content"]

    one_by_one, together = {}, {}
    for sample in samples:
        answer(sample, one_by_one)
    threads = [threading.Thread(target=answer, args=(s, together)) for s in samples]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == one_by_one


def test_what_is_asked_is_kept_as_calibration_data(server, log):
    log.unlink(missing_ok=True)
    sample = load_calibration("tiny", samples=1)[0][0]
    asked = question(sample)
    assert ask(server, "/v1/chat/completions", asked)[0] == 200
    text_only = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
    ask(server, "/v1/chat/completions", text_only)
    ask(server, "/v1/chat/completions", asked | {"model": "other"})
    assert [json.loads(line) for line in log.read_text().splitlines()] == [asked]
    assert log.stat().st_mode & 0o777 == 0o600
    (found,) = load_calibration(str(log), held_out=0)[0]
    assert found.pixels() == sample.pixels()
    assert found.turns[0].parts == (None, sample.question)


def test_it_has_one_model(server):
    models = json.loads(ask(server, "/v1/models")[1])["data"]
    assert [model["id"] for model in models] == ["tiny"]
    assert ask(server, "/health")[0] == 200
    status, text = ask(server, "/v1/chat/completions", {"model": "other", "messages": []})
    assert status == 400
    assert "other" in text
    assert "this server has the model 'tiny' only" in ask(server, "/load_model", {"model": "x"})[1]
    # A reset frees models that transformers loaded; this one stays.
    sample = load_calibration("tiny", samples=1)[0][0]
    assert ask(server, "/reset", {})[0] == 200
    assert ask(server, "/v1/chat/completions", question(sample))[0] == 200


def test_an_address_that_is_taken_is_one_line(server, tmp_path, config):
    taken = int(server.url.rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1 port {taken}: .*--port"):
        Server(None, port=taken)
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1"):
        Server(None, host="192.0.2.1", port=0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    listening = Server(None, port=port)
    assert listening.url == f"http://127.0.0.1:{port}"
    listening.close()
    path = config.save(tmp_path / "c.json")
    refused("serve", path, has=("model.name is empty", "--model"))
    refused("serve", path, "--model", "tiny", "--port", -1, has=("--port", "-1"))


def test_without_its_packages_it_says_what_to_install(config, tmp_path, monkeypatch):
    from transformers.utils import import_utils

    monkeypatch.setattr(import_utils, "is_serve_available", lambda: False)
    with pytest.raises(ConfigError, match="prunetune\\[serve\\]"):
        serve.require()
    path = config.save(tmp_path / "c.json")
    refused("serve", path, "--model", "tiny", has=("pip install 'prunetune[serve]'",))


def test_the_command_serves_until_interrupted(config, tmp_path):
    path = config.save(tmp_path / "c.json")
    words = ["-m", "prunetune", "serve", path, "--model", "tiny", "--port", "0", "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        url = re.search(r"http://127\.0\.0\.1:\d+", line)[0]
        assert "mean retention 20%" in line
        with urllib.request.urlopen(f"{url}/health", timeout=60) as answer:
            assert json.loads(answer.read()) == {"status": "ok"}
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors == ""
