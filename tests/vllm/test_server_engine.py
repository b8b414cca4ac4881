"""vLLM's own OpenAI server, as a deployment starts it: by the entry point, in several processes."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from engines import config_for, needs_vllm

from prunetune.calibration import load_sides
from prunetune.deploy.engines import answers
from prunetune.models import load_model
from prunetune.models.load import EMBEDDED
from prunetune.vllm.jobs import Job, ask, environment

pytestmark = [needs_vllm, pytest.mark.slow]
COUNT, NEW = 24, 8
SERVER = [
    sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(EMBEDDED),
    "--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager", "--max-model-len",
    "1024", "--max-num-seqs", "8", "--host", "127.0.0.1", "--block-size", "32",
]  # fmt: skip


def server(config, *flags):
    env = environment() | {"PRUNETUNE_CONFIG": str(config)}
    del env["VLLM_ENABLE_V1_MULTIPROCESSING"]
    return subprocess.Popen(
        [*SERVER, *flags], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def test_a_config_that_cannot_run_ends_the_server_with_one_line(tmp_path):
    later = config_for("llava_next", 16, layer=2, restorer=None).save(tmp_path / "later.json")
    process = server(later)
    _, told = process.communicate(timeout=600)
    assert process.returncode == 2
    [line] = [line for line in told.splitlines() if "prunetune" in line]
    assert line.startswith("error: prunetune: ")
    assert "layer 2" in line
    assert "Traceback" not in told


def test_settings_that_pruning_cannot_work_with_are_refused():
    """Before anything is loaded; and one that it can work with is not."""
    settings = [
        {"pipeline_parallel_size": 2},
        {"mm_encoder_tp_mode": "data"},
        {"enable_mm_embeds": True},
        {"video_pruning_rate": 0.5},
        {"compilation_config": {"compile_mm_encoder": True}},
        {"enable_chunked_prefill": True},
    ]
    jobs = [
        Job(str(EMBEDDED), "llava_next", config_for("llava_next", layers), [], [], refusals=given)
        for layers, given in ((16, settings), (9, [{}]))
    ]
    of_settings, of_model = (done["refusals"] for done in ask(jobs))
    *refused, fine = of_settings
    assert fine is None
    assert all("leave it out" in str(each) for each in refused), refused
    assert "9 decoder layers" in of_model[0]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("served")
    config = config_for("llava_next", 16).save(folder / "original.prune.json")
    process = server(config, "--port", str(port))
    try:
        for _ in range(600):
            assert process.poll() is None, process.stderr.read()[-2000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1/chat/completions"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def test_the_openai_server(served):
    """Many requests at once, twice: answers, and usage that counts what is kept."""
    samples = list(load_sides("tiny", None, seed=0)[1])[:COUNT]
    loaded = load_model("tiny")
    wanted = answers(loaded, config_for("llava_next", 16), samples, new_tokens=NEW)

    def request(sample):
        picture = io.BytesIO()
        sample.images[0].convert("RGB").save(picture, "PNG")
        url = "data:image/png;base64," + base64.b64encode(picture.getvalue()).decode()
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": sample.question},
        ]
        body = {
            "model": "tiny", "temperature": 0, "max_tokens": NEW, "add_special_tokens": True,
            "messages": [{"role": "user", "content": content}],
        }  # fmt: skip
        header = {"Content-Type": "application/json"}
        asked = urllib.request.Request(served, json.dumps(body).encode(), header)
        return json.load(urllib.request.urlopen(asked, timeout=300))

    for _ in range(2):
        with ThreadPoolExecutor(8) as pool:
            given = list(pool.map(request, samples))
        texts = [each["choices"][0]["message"]["content"].strip() for each in given]
        theirs = [
            loaded.processor.tokenizer.decode(a.ids, skip_special_tokens=True).strip()
            for a in wanted
        ]
        assert sum(a == b for a, b in zip(texts, theirs, strict=True)) >= COUNT - 1
        counts = [each["usage"]["prompt_tokens"] for each in given]
        assert counts == [a.prompt_tokens for a in wanted]
