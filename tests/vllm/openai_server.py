"""vLLM's own OpenAI server in a process of its own, started as a deployment starts it."""

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
from contextlib import contextmanager

from prunetune.models.load import EMBEDDED
from prunetune.vllm.jobs import environment

SERVER = [
    sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(EMBEDDED),
    "--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager", "--max-model-len",
    "1024", "--max-num-seqs", "8", "--host", "127.0.0.1", "--block-size", "32",
    "--enable-prompt-tokens-details",
]  # fmt: skip


def started(config, log, *flags):
    """Start a server under a config file; what it says on stderr goes to a file."""
    env = environment() | {"PRUNETUNE_CONFIG": str(config)}
    del env["VLLM_ENABLE_V1_MULTIPROCESSING"]
    with log.open("w") as said:
        return subprocess.Popen(
            [*SERVER, *flags], env=env, stdout=said, stderr=said, start_new_session=True
        )


@contextmanager
def serving(config, log, *flags):
    """Yield a function that asks a server many samples at once, and end the server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = started(config, log, "--port", str(port), *flags)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()[-2000:]
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5)
                break
            except OSError:
                time.sleep(1)

        def ask(samples, new_tokens):
            with ThreadPoolExecutor(8) as pool:
                bodies = [body(sample, new_tokens) for sample in samples]
                return list(pool.map(lambda b: post(f"{url}/v1/chat/completions", b), bodies))

        yield ask
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def body(sample, new_tokens):
    """Return a request of OpenAI's chat API."""
    content = []
    for picture in sample.images:
        file = io.BytesIO()
        picture.convert("RGB").save(file, "PNG")
        url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        content.append({"type": "image_url", "image_url": {"url": url}})
    return {
        "model": "tiny", "temperature": 0, "max_tokens": new_tokens, "add_special_tokens": True,
        "messages": [
            {"role": "user", "content": [*content, {"type": "text", "text": sample.question}]}
        ],
    }  # fmt: skip


def post(url, data):
    """Return what the server answers."""
    header = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(data).encode(), header)
    return json.load(urllib.request.urlopen(request, timeout=300))
