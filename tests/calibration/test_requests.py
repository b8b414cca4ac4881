"""Conversations as calibration data: logs of requests, ``messages`` rows, The Cauldron's texts."""

import base64
import http.server
import io
import itertools
import json
import os
import threading

import pytest
from cli_runner import call, refused
from family_models import _folders, _folders_llava, family
from PIL import Image
from sets import everything, picture, write_rows
from sets import refused as refused_source

from prunetune.calibration import encode, load_calibration
from prunetune.calibration.collate import prompt_text
from prunetune.models import load_model

COUNT = int(os.environ.get("PRUNETUNE_REQUESTS", "6"))
"""Requests in a log; 60 by hand: every prompt is compared, more of them add time, not cases."""
SECRET = "Zaphod's passport"
LLAVA_TEMPLATE = """{% for m in messages %}{{ m['role'] | upper }}: {% for c in m['content'] %}
{%- if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}
{% endfor %}{% if mood is defined %}[{{ mood }}]{% endif %}
{%- if add_generation_prompt %}ASSISTANT:{% endif %}"""


def drawn(number):
    return picture(number, (40, 30)).resize((80, 60))


def uri(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def body(folder, number):
    """A request of three turns and two pictures: one inside the request, one in a file."""
    drawn(2 * number).save(folder / f"{number}.png")
    first = {"type": "image_url", "image_url": {"url": f"{number}.png"}}
    second = {"type": "image_url", "image_url": {"url": uri(drawn(2 * number + 1))}}
    return {
        "model": "m",
        "temperature": 0,
        "messages": [
            {"role": "system", "content": "You are brief."},
            {"role": "user", "content": [first, {"type": "text", "text": f"{SECRET} {number}?"}]},
            {"role": "assistant", "content": "A page."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "And here, "},
                    second,
                    {"type": "text", "text": " is it  the same ?"},
                ],
            },
            {"role": "assistant", "content": "No."},
            {"role": "user", "content": "Why not?"},
        ],
    }


def plain(messages, folder):
    """Messages as ``apply_chat_template`` takes them; read here, not by prunetune."""

    def part(one):
        if one["type"] == "text":
            return one
        url = one["image_url"]["url"]
        data = base64.b64decode(url.partition(",")[2]) if url[:5] == "data:" else None
        image = Image.open(io.BytesIO(data) if data else folder / url).convert("RGB")
        return {"type": "image", "image": image}

    parts = [
        [{"type": "text", "text": m["content"]}] if isinstance(m["content"], str) else m["content"]
        for m in messages
    ]
    return [{"role": m["role"], "content": [*map(part, c)]} for m, c in zip(messages, parts)]


@pytest.fixture(scope="module", params=["qwen2_5_vl", "llava_next"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / request.param
    if request.param == "qwen2_5_vl":
        return _folders.save_qwen(family(request.param), folder)
    _folders_llava.save(request.param, folder)
    (folder / "chat_template.jinja").write_text(LLAVA_TEMPLATE, "utf-8")
    return folder


@pytest.fixture
def log(tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    return write_rows(folder, [body(folder, number) for number in range(COUNT)], "requests.jsonl")


@pytest.mark.parametrize("options", [{}, {"add_generation_prompt": False, "mood": "calm"}])
def test_the_prompt_is_the_templates_to_the_token(model, log, options):
    processor = load_model(str(model)).processor
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    bodies = {row["messages"][1]["content"][1]["text"]: row["messages"] for row in rows}
    samples = everything(log, template=options)
    assert len(samples) == len(bodies) == COUNT
    for sample in samples:
        said = bodies[sample.turns[1].text]
        expected = processor.apply_chat_template(
            plain(said, log.parent),
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            **{"add_generation_prompt": True, **options},
        )
        found = encode(processor, [sample])
        assert found["input_ids"].tolist() == expected["input_ids"].tolist()
        assert found["pixel_values"].equal(expected["pixel_values"])
        # As another engine gets it, which puts in the pictures itself.
        text = processor(text=[prompt_text(processor, sample)], images=[list(sample.images)])
        assert text["input_ids"] == found["input_ids"].tolist()
        marker = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
        slots = [i for i, t in enumerate(found["input_ids"][0].tolist()) if t == marker]
        gaps = sum(b - a > 1 for a, b in itertools.pairwise(slots))
        assert gaps >= 1, "each picture stands where the request has it"
    if options:
        assert everything(log).digest() != samples.digest()


def test_search_export_and_verify_on_a_log(model, log, tmp_path):
    out = tmp_path / "out"
    words = ("--data", log, "--template-arg", "add_generation_prompt=true", "--device", "cpu")
    ran = call(
        *("search", "--model", model, *words, "--keep", "0.5", "--trials", 2, "--preset", "none"),
        *("--scorers", "coverage", "--out", out, "--no-cache"),
    )
    assert ran.status == 0, ran.err
    checked = call(
        *("verify", out / "config.json", *words, "--max-gap", "2", "--self-test", "0", "--json")
    )
    assert checked.status == 0, checked.err
    assert checked.json["reproduced"] is True
    for path in out.rglob("*"):
        if path.is_file():
            assert b"Zaphod" not in path.read_bytes(), path
    shown = call("report", out, "--show-samples", "-o", tmp_path / "shown.html", "--device", "cpu")
    assert shown.status == 0, shown.err
    assert "Zaphod" in (tmp_path / "shown.html").read_text("utf-8")


def test_forms_of_conversations(tmp_path):
    for i in range(4):
        picture(i).save(tmp_path / f"{i}.png")
    said = [
        {"role": "user", "content": "<image>\nWhat?"},
        {"role": "assistant", "content": "A cat."},
    ]
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "So:"}, {"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Dog."}]},
    ]
    rows = [
        {"messages": said, "images": ["0.png"]},
        {"prompt": parts[:1], "completion": parts[1:], "images": ["1.png"]},
        {"texts": [{"user": "a?", "assistant": "b"}, {"user": "c?", "assistant": "d"}],
         "images": ["2.png", "3.png"]},
        {"body": {"messages": parts[:1], "images": ["1.png"]},
         "response": {"choices": [{"message": {"content": "Mouse."}}]}},
    ]  # fmt: skip
    path = write_rows(tmp_path, rows, "rows.jsonl")
    found = {s.answer: s for s in everything(path)}
    assert set(found) == {"A cat.", "Dog.", "d", "Mouse."}
    assert found["A cat."].turns[0].parts == (None, "What?")
    assert found["Dog."].turns[0].parts == ("So:", None)
    assert [t.role for t in found["d"].turns] == ["user", "assistant", "user"]
    assert found["d"].turns[0].parts == (None, None, "a?")
    assert all(s.private and not s.shown().question for s in found.values())


@pytest.mark.parametrize(
    ("message", "parts"),
    [
        ({"role": "user", "content": "no picture"}, ("no picture",)),
        ({"role": "user", "content": [{"type": "input_audio"}]}, ("'input_audio'",)),
        ({"role": "user", "content": [{"type": "image"}]}, ("place for picture 1",)),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "data:,%%"}]},
         ("base64",)),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "gone.png"}]},
         ("'gone.png'",)),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "http://a.b/c.png"}]},
         ("a.b", "--allow-remote")),
        ({"role": "robot", "content": "x"}, ("'robot'",)),
        ({"role": "user", "content": "half \ud83d"}, ("half a character",)),
    ],
)  # fmt: skip
def test_bad_requests_are_named_or_skipped(tmp_path, message, parts):
    rows = [body(tmp_path, 0), {"messages": [message]}]
    path = write_rows(tmp_path, rows, "rows.jsonl")
    refused_source(path, "rows.jsonl line 2", *parts, held_out=0)
    assert len(everything(path, skip_bad=True)) == 1


def test_tools_are_left_out_with_a_word(tmp_path, caplog):
    row = body(tmp_path, 0) | {"tools": [{"type": "function"}]}
    row["messages"] += [
        {"role": "assistant", "content": None, "tool_calls": [{}]},
        {"role": "tool", "content": "42"},
        {"role": "user", "content": "So?"},
    ]
    (sample,) = everything(write_rows(tmp_path, [row], "rows.jsonl"))
    assert "tools of 1 conversation" in caplog.text
    assert [t.role for t in sample.turns][-2:] == ["user", "user"]


def test_a_file_outside_is_never_read(tmp_path):
    picture(0).save(tmp_path / "outside.png")
    (tmp_path / "in").mkdir()
    for name in ("../outside.png", f"file://{tmp_path}/outside.png"):
        part = {"type": "image_url", "image_url": {"url": name}}
        rows = [{"messages": [{"role": "user", "content": [part]}]}]
        path = write_rows(tmp_path / "in", rows, "rows.jsonl")
        refused_source(path, "leaves the folder", skip_bad=True)
    picture(0).save(tmp_path / "in" / "inside.png")
    part["image_url"]["url"] = f"file://{tmp_path}/in/inside.png"
    assert len(everything(write_rows(tmp_path / "in", rows, "rows.jsonl"))) == 1


def test_pictures_are_fetched_where_that_is_allowed(tmp_path):
    buffer = io.BytesIO()
    picture(3).save(buffer, "PNG")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(buffer.getvalue())

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/x.png"
        part = {"type": "image_url", "image_url": {"url": url}}
        rows = [{"messages": [{"role": "user", "content": [part]}]}]
        path = write_rows(tmp_path, rows, "rows.jsonl")
        (sample,) = everything(path, allow_remote=True)
        server.shutdown()
    assert sample.pixels() == everything(write_local(tmp_path))[0].pixels()
    refused_source(path, "--allow-remote", held_out=0)


def write_local(folder):
    (folder / "local").mkdir()
    picture(3).save(folder / "local" / "x.png")
    return folder / "local"


def test_data_check_names_what_a_processor_refuses(model, tmp_path):
    for i in range(8):
        picture(i, (40, 30)).save(tmp_path / f"p{i}.png")
    Image.new("RGB", (1093, 5)).save(tmp_path / "banner.png")
    ran = call("data", "check", tmp_path, "--model", model)
    if "qwen" not in model.name:
        assert ran.status == 0, "this family takes any shape"
        return
    refused("data", "check", tmp_path, "--model", model, has=("banner.png", "1093x5", "--skip-bad"))
    kept = call("data", "check", tmp_path, "--model", model, "--skip-bad", "--json")
    assert kept.status == 0
    assert any("banner.png" in name for name in kept.json["skipped_names"])
    assert "banner.png" in call("data", "check", tmp_path).out, "a word also without a model"


def test_a_question_that_holds_a_video_marker_is_asked(model, tmp_path):
    samples = load_calibration(str(everything_with(tmp_path)), held_out=0)[0]
    assert encode(load_model(str(model)).processor, list(samples))["input_ids"].shape[0] == 2


def everything_with(folder):
    for i in range(2):
        picture(i).save(folder / f"{i}.png")
    rows = [{"file_name": f"{i}.png", "question": "what is <|video_pad|> ?"} for i in range(2)]
    write_rows(folder, rows)
    return folder
