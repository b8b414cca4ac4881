"""lmms-eval on a pruned model counts as many right answers as ``verify --match exact``.

Needs lmms-eval, which is in an environment of its own: ``make test-lmms``.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runner import call

from prunetune.presets import load_preset

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: make test-lmms")

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "calibration_data" / "tiny" / "held_out"
ROWS = 48
TASK = """
task: shapes
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: {kind}
doc_to_visual: !function shapes.pictures
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
"""
GENERATED = """
generation_kwargs:
  max_new_tokens: 8
  temperature: 0
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
CHOSEN = """
doc_to_choice: ["red", "green", "blue", "yellow", "orange", "purple", "cyan", "magenta"]
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
PICTURES = """
from PIL import Image


def pictures(doc):
    return [Image.open(doc["image"])]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of tasks for ``--include_path``, and the same rows as a calibration source."""
    folder = tmp_path_factory.mktemp("tasks")
    known = (SHIPPED / "metadata.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in known][:ROWS]
    data = folder / "data"
    data.mkdir()
    for row in rows:
        (data / row["file_name"]).write_bytes((SHIPPED / row["file_name"]).read_bytes())
    (data / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with (folder / "rows.json").open("w") as file:
        for row in rows:
            file.write(json.dumps({**row, "image": str(data / row["file_name"])}) + "\n")
    made = TASK.format(rows=folder / "rows.json", kind="generate_until") + GENERATED
    (folder / "shapes.yaml").write_text(made)
    colours = [row for row in rows if row["type"] == "color"]
    (folder / "colours.json").write_text(
        "".join(
            json.dumps({**row, "image": str(data / row["file_name"])}) + "\n" for row in colours
        )
    )
    chosen = TASK.format(rows=folder / "colours.json", kind="multiple_choice") + CHOSEN
    (folder / "chosen.yaml").write_text(chosen.replace("task: shapes", "task: chosen"))
    (folder / "shapes.py").write_text(PICTURES)
    return folder


@pytest.fixture(scope="module")
def config(tasks):
    made, _ = load_preset("uniform", model_type="llava_next", num_layers=16, keep=0.1)
    return made.save(tasks / "c.prune.json")


def evaluated(tasks, task, *words, model_args="pretrained=tiny", status=0):
    """Run lmms-eval as people do, and return a task's results."""
    out = tasks / "out"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tasks / "cache")}
    ran = subprocess.run(
        [sys.executable, "-m", "lmms_eval", "--model", "prunetune", "--model_args", model_args,
         "--tasks", task, "--include_path", tasks, "--output_path", out, *words],
        env=environment, cwd=tasks, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == status, ran.stdout[-3000:] + ran.stderr[-3000:]
    if status:
        return ran.stderr
    newest = max(out.rglob("*_results.json"), key=lambda path: path.stat().st_mtime)
    return json.loads(newest.read_text())["results"][task]


@pytest.fixture(scope="module")
def verified(tasks, config):
    """How many answers are right to the letter, of all rows: unpruned and pruned."""
    ran = call(
        *("verify", config, "--model", "tiny", "--data", tasks / "data", "--match", "exact"),
        *("--self-test", "0", "--json"),
    )
    assert ran.status == 0, ran.err
    sides = [ran.json["calibration"], ran.json["held_out"]]
    assert sum(side["samples"] for side in sides) == ROWS
    return {
        name: sum(side[key] * side["samples"] for side in sides)
        for name, key in (("unpruned", "unpruned_accuracy"), ("pruned", "accuracy"))
    }


@pytest.mark.parametrize(("which", "batch_size"), [("unpruned", "1"), ("pruned", "16")])
def test_the_accuracy_is_that_of_verify(tasks, config, verified, which, batch_size):
    given = "pretrained=tiny" + (f",config={config}" if which == "pruned" else "")
    found = evaluated(tasks, "shapes", "--batch_size", batch_size, model_args=given)
    assert found["exact_match,none"] * ROWS == pytest.approx(verified[which])


def test_pruning_is_seen(verified):
    """So the test above can fail."""
    assert 0 < verified["pruned"] < verified["unpruned"] < ROWS


def test_the_likelihood_of_choices(tasks, config):
    found = evaluated(
        tasks, "chosen", "--force_simple", model_args=f"pretrained=tiny,config={config}"
    )
    # An eighth by chance, and nothing where the worst is taken for the best.
    assert found["acc,none"] > 0.5


def test_likelihoods_are_those_of_the_whole_text(config):
    """Of a continuation fed with the cache: as much as fed along with the prompt, unpruned."""
    import torch
    from PIL import Image

    from prunetune.lmms.likelihood import continuation_loss
    from prunetune.lmms.prompts import encode, user_turn
    from prunetune.models import load_model
    from prunetune.runtime import apply

    loaded = load_model("tiny")
    image = Image.open(SHIPPED / "held_out-000.png")
    tokenizer = loaded.processor.tokenizer
    inputs = encode(loaded.processor, [user_turn([image], "what color is the star ?")])
    ids = tokenizer("blue red", add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert ids.shape[1] > 1
    whole = {
        **inputs,
        "input_ids": torch.cat([inputs["input_ids"], ids], 1),
        "attention_mask": torch.ones(1, inputs["input_ids"].shape[1] + ids.shape[1]),
    }
    with torch.inference_mode():
        logits = loaded.model(**whole).logits[:, -ids.shape[1] - 1 : -1].log_softmax(-1)
    expected = -float(logits.gather(-1, ids[..., None]).mean())
    told, greedy = continuation_loss(loaded.model, tokenizer, inputs, "blue red")
    assert told == pytest.approx(expected, abs=1e-4)
    assert not greedy
    assert continuation_loss(loaded.model, tokenizer, inputs, "blue")[1]
    with apply(loaded.model, config):
        pruned, _ = continuation_loss(loaded.model, tokenizer, inputs, "blue red")
    assert pruned != pytest.approx(told, abs=1e-3)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("pretrained=tiny,cofnig=a.json", "received 'cofnig', allowed"),
        ("pretrained=tiny,config=none.json", "cannot read config 'none.json'"),
        ("config=CONFIG", "no model; say pretrained=NAME"),
        ("pretrained=tiny,config=hf://org/name/x.bin", "allowed: hf://ORG/NAME/FILE.json"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_2(config, capsys, given, says):
    from prunetune.lmms.model import Chat

    with pytest.raises(SystemExit) as left:
        Chat.create_from_arg_string(given.replace("CONFIG", str(config)), {"batch_size": "1"})
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: prunetune: ")
    assert says in line


def test_what_a_task_asks_for_is_what_generate_gets():
    from prunetune.lmms.model import _options, _until

    assert _options({})["max_new_tokens"] == 1024
    greedy = _options({"temperature": 0, "do_sample": False, "top_p": 0.9, "max_new_tokens": 5})
    assert (greedy["do_sample"], greedy["top_p"], greedy["max_new_tokens"]) == (False, None, 5)
    sampled = _options({"temperature": 0.7, "top_p": 0.9, "until": ["x"]})
    assert (sampled["do_sample"], sampled["top_p"]) == (True, 0.9)
    assert "until" not in sampled
    assert _until(" a\n\nb STOP c", ["\n\n", "STOP", ""]) == "a\n\nb"


def test_system_prompts_videos_and_text_only():
    from prunetune.lmms.model import Chat
    from prunetune.lmms.prompts import media_of, user_turn

    model = Chat(pretrained="tiny", system_prompt="Be brief.")
    turn = user_turn([], "what is red ?")
    assert model._asked(turn)[0]["role"] == "system"
    assert len(turn) == 1, "the task's own messages stay as they are"
    assert media_of(user_turn(["a.mp4", "b.JPG"], "x")) == ("video", "image")
    (answer,) = model._generate([user_turn([], "what color is the star ?")], {"max_new_tokens": 3})
    assert answer.token_counts.output_tokens <= 3
    model.clean()


def test_each_process_of_several_has_its_own_gpu(monkeypatch):
    import torch

    from prunetune.lmms.arguments import own_device

    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert own_device() is None
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert own_device() == "cuda:3"
