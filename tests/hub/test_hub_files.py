"""Configs on the hub, against a stand-in for its HTTP API on this machine."""

import json
import os
import traceback
from pathlib import Path

import pytest
from cli_runner import call, picture, refused
from local_hub import TOKEN, serving

import prunetune
from prunetune.config import PruningConfig
from prunetune.errors import ConfigError
from prunetune.hub.uris import is_uri, parse

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = {
    "format": "prunetune.config",
    "version": 1,
    "model": {"model_type": "llava_next", "num_layers": 16, "name": "tiny"},
    "stages": [{"layer": 2, "retention": 0.5, "scorers": [{"name": "coverage", "weight": 1.0}]}],
}


@pytest.fixture(scope="module")
def listening():
    with serving() as hub:
        yield hub


@pytest.fixture
def hub(listening, monkeypatch, tmp_path):
    """An empty hub, an empty cache, nobody logged in."""
    from huggingface_hub import constants

    listening.repos.clear()
    listening.asked.clear()
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    point_to(listening.url, monkeypatch)
    return listening


def point_to(url, monkeypatch):
    """What ``HF_ENDPOINT`` does in a process that has not begun."""
    from huggingface_hub import constants, hf_api

    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(hf_api.api, "endpoint", url)


def tiny(layer=2):
    stage = {**TINY["stages"][0], "layer": layer}
    return PruningConfig.parse({**TINY, "stages": [stage]})


def put(hub, *, name="org/name", file="config.prune.json", config=None, **more):
    return hub.put(name, {file: (config or tiny()).to_json().encode()}, **more)


# -- addresses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf://org/name", ("org/name", "config.prune.json", None, None)),
        ("hf://org/name/a/b.json@v1", ("org/name", "a/b.json", "v1", None)),
        ("hf://org/name@v1/a/b.json", ("org/name", "a/b.json", "v1", None)),
        ("hf://org/name@refs/pr/3/b.json", ("org/name", "b.json", "refs/pr/3", None)),
        ("hf://org/name/b.json@refs/pr/3", ("org/name", "b.json", "refs/pr/3", None)),
        ("hf://org/name/b.json@feature/x", ("org/name", "b.json", "feature/x", None)),
        ("hf://org/name/a%40b.json", ("org/name", "a@b.json", None, None)),
        ("hf://datasets/org/name/b.json", ("org/name", "b.json", None, "dataset")),
        (Path("hf://org/name/b.json"), ("org/name", "b.json", None, None)),
    ],
)
def test_addresses(text, parts):
    place = parse(text)
    assert is_uri(text)
    assert (place.repo, place.file, place.revision, place.kind) == parts
    again = parse(str(place).replace("a@b", "a%40b"))
    assert again == place


@pytest.mark.parametrize(
    "text",
    ["hf://org", "hf://", "hf://org/name/x.bin", "hf://org/name/../x.json", "hf://o/n/x.json@"],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ConfigError, match=r"allowed: hf://ORG/NAME/FILE.json"):
        parse(text)
    assert not is_uri(text.replace("hf:", "sqlite:"))


# -- from the hub -------------------------------------------------------------------------


def test_a_config_comes_from_the_hub_and_then_from_the_cache(hub, monkeypatch, tmp_path):
    from huggingface_hub import constants

    first = put(hub)
    second = put(hub, config=tiny(3))
    put(hub, file="sub/b.json", config=tiny(4), branch="v1")
    assert PruningConfig.from_pretrained("org/name") == tiny(3)
    assert PruningConfig.from_pretrained("org/name", revision=first) == tiny(2)
    assert PruningConfig.from_pretrained("org/name", filename="sub/b.json", revision="v1") == tiny(
        4
    )
    for text in ("hf://org/name/sub/b.json@v1", "hf://org/name@v1/sub/b.json"):
        assert PruningConfig.load(text) == tiny(4)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    assert PruningConfig.from_pretrained("org/name") == tiny(3)
    assert PruningConfig.load(f"hf://org/name/config.prune.json@{second}") == tiny(3)
    assert hub.asked == []
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        PruningConfig.load("hf://org/name/never.json")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # Nobody listens there: what is cached is taken, and what is not is said to be out of reach.
    point_to("http://127.0.0.1:9", monkeypatch)
    assert PruningConfig.from_pretrained("org/name") == tiny(3)
    with pytest.raises(ConfigError, match="the hub cannot be reached"):
        PruningConfig.load("hf://org/name/never.json")
    tiny(5).save(tmp_path / "local" / "config.prune.json")
    assert PruningConfig.from_pretrained(tmp_path / "local") == tiny(5)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("hf://org/none/x.json", "no repository 'org/none', or it is private"),
        ("hf://org/hidden", "no repository 'org/hidden', or it is private"),
        ("hf://org/gated", "needs a licence; accept it on its page"),
        ("hf://org/name/x.json", "no such file; its JSON files: config.prune.json, other.json"),
        ("hf://org/name@v9", "no revision 'v9'"),
        ("hf://org/name/other.json", "not JSON"),
    ],
)
def test_what_is_not_there_is_one_line_and_exit_2(hub, address, says):
    put(hub)
    hub.put("org/name", {"other.json": b"{", "README.md": b"hi"})
    put(hub, name="org/hidden", private=True)
    hub.create("org/gated")["gated"] = True
    assert says in refused("diff", address, address)


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "URI"),
        ("bench", "URI"),
        ("serve", "URI", "--port", "0"),
        ("show", "URI", "PICTURE"),
        ("diff", "URI", "URI"),
        ("push", "URI", "org/other"),
    ],
    ids=lambda words: words[0],
)
def test_every_verb_that_takes_a_config_asks_the_hub(hub, tmp_path, words):
    picture(1).save(tmp_path / "p.png")
    uri = "hf://org/none/x.json"
    named = {"URI": uri, "PICTURE": tmp_path / "p.png"}
    refused(*(named.get(word, word) for word in words), has=[uri, "no repository 'org/none'"])


def test_verbs_run_on_a_config_of_the_hub(hub, tmp_path, monkeypatch):
    put(hub)
    put(hub, config=tiny(3), branch="v1")
    uri = "hf://org/name/config.prune.json"
    ran = call("diff", uri, f"{uri}@v1", "--json")
    assert ran.status == 0, ran.err
    assert not ran.json["equal"]
    picture(1).save(tmp_path / "p.png")
    ran = call("show", uri, tmp_path / "p.png", "--against", f"{uri}@v1", "-o", tmp_path / "k.png")
    assert ran.status == 0, ran.err
    ran = call("verify", uri, "--samples", "2", "--self-test", "0", "--json")
    assert ran.status == 0, ran.err
    assert ran.json["config"] == uri
    model = prunetune.models.load_model("tiny").model
    prunetune.apply(model, uri).remove()
    # What studies are asked for, and what is written, is no place on the hub.
    refused("status", uri, has=["on the hub are configs, not studies"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="prunetune push FILE ORG/NAME"):
        tiny().save(uri)
    assert not Path("hf:").exists()


def test_the_plug_in_of_vllm_stays_at_one_commit(hub, monkeypatch):
    from prunetune.vllm import engine

    vision = {"model_type": "llava", "num_layers": 4}
    stage = {**TINY["stages"][0], "layer": 0}
    config = PruningConfig.parse({**TINY, "model": vision, "stages": [stage]})
    commit = put(hub, config=config)
    monkeypatch.setenv("PRUNETUNE_CONFIG", "hf://org/name")
    engine._load.cache_clear()
    engine._pin()
    assert os.environ["PRUNETUNE_CONFIG"] == f"hf://org/name/config.prune.json@{commit}"
    put(hub, config=tiny(3))
    hub.asked.clear()
    assert engine.current() == config
    assert hub.asked == [], "a process of an engine finds it in the cache"
    monkeypatch.setenv("PRUNETUNE_CONFIG", "a.prune.json")
    engine._pin()
    assert os.environ["PRUNETUNE_CONFIG"] == "a.prune.json"


# -- secrets ------------------------------------------------------------------------------

BAD = "hf_secret\x0bZaphod"


@pytest.mark.parametrize("address", ["hf://org/name/x.json", "hf://org/hidden"])
def test_a_token_is_never_printed(hub, monkeypatch, address):
    put(hub, name="org/hidden", private=True)
    monkeypatch.setenv("HF_TOKEN", BAD)
    assert "Zaphod" not in refused("diff", address, address)
    assert "Zaphod" not in refused("verify", "--model", "org/none", GOLDEN / "v1_topv.json")
    shown = call("diff", address, address, "--debug").err
    assert "Traceback" in shown
    assert "Zaphod" not in shown
    with pytest.raises(ConfigError) as raised:
        PruningConfig.load(address)
    assert "Zaphod" not in "".join(traceback.format_exception(raised.value))


def test_the_http_library_does_print_it(hub):
    """So the test above can fail."""
    from huggingface_hub import HfApi

    with pytest.raises(Exception, match="Zaphod"):
        HfApi(token=BAD).model_info("org/name")


# -- to the hub ---------------------------------------------------------------------------


@pytest.fixture
def owner(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def result():
    scores = {"held_out_gap": 0.02, "top1_agreement": 0.9, "accuracy": None}
    costs = {"mean_retention": 0.25, "flops_ratio": 0.3}
    row = {**scores, **costs}
    return {
        "best": {**row, "held_out_ci": [0.01, 0.03]},
        "unpruned": {"accuracy": None},
        "baselines": [
            {"name": "topv", **row, "held_out_gap": None, "notes": "a | b <script>"},
            {"name": "uniform", **row, "held_out_gap": 0.05, "notes": ""},
        ],
        "verdict": "The search paid.",
    }


def test_push_makes_a_card_and_keeps_what_is_on_it(owner):
    import yaml

    data = json.loads((GOLDEN / "v2_everything.json").read_text())
    made = {"calibration_digest": "c0ffee", "gap_ci": [0.04, 0.06], "seed": 3}
    config = PruningConfig.parse(data | {"provenance": data["provenance"] | made})
    done = config.push_to_hub("org/new", result=result(), private=True)
    assert PruningConfig.load(str(done.place)) == config
    assert owner.repos["org/new"]["private"] is True
    files = owner.files("org/new")
    assert files["config.prune.json"].decode() == config.to_json()
    card = files["README.md"].decode()
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert metadata["library_name"] == "prunetune"
    for text in (config.digest(), "c0ffee", "The search paid."):
        assert text in card
    table = card.partition("### Held-out split")[2]
    assert table.index("this config") < table.index("uniform") < table.index("topv")
    assert "a \\| b &lt;script&gt;" in table
    # Somebody edits the card; then another config comes, and the first one again.
    edited = card.replace("library_name: prunetune", "library_name: prunetune\nlicense: mit")
    owner.put("org/new", {"README.md": (edited + "\nMy words.\n").encode()})
    tiny().push_to_hub("org/new", filename="b.json")
    config.push_to_hub("org/new")
    card = owner.files("org/new")["README.md"].decode()
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "mit"
    assert "My words." in card
    assert card.count("## config.prune.json") == card.count("## b.json") == 1
    assert "The search paid." not in card, "it is what the last push knows"
    for head in (": : x\n - y", "date: 2026-99-99", "tags: " + "[" * 20_000):
        broken = f"---\n{head}\n---\nhi"
        owner.put("org/new", {"README.md": broken.encode()})
        with pytest.raises(ConfigError, match="metadata that is not YAML"):
            config.push_to_hub("org/new")
        assert owner.files("org/new")["README.md"].decode() == broken


def test_push_to_branches_and_pull_requests(owner):
    owner.create("org/name")
    tiny().push_to_hub("org/name", revision="v1")
    assert set(owner.files("org/name", "v1")) == {"config.prune.json", "README.md"}
    assert owner.files("org/name") == {}
    done = tiny(3).push_to_hub("org/name", create_pr=True)
    assert done.url.endswith("/discussions/1")
    assert owner.files("org/name") == {}
    assert PruningConfig.load("hf://org/name@refs/pr/1") == tiny(3)


def test_push_from_the_command_line(owner, monkeypatch, tmp_path):
    path = tiny().save(tmp_path / "a.prune.json")
    ran = call("push", path, "org/name", "--filename", "x.json", "--json")
    assert ran.status == 0, ran.err
    assert ran.json["held_out_table"] is False
    assert PruningConfig.load(ran.json["config"]) == tiny()
    ran = call("push", path, "hf://org/name/y.json@v1", "--json")
    assert ran.status == 0, ran.err
    assert (ran.json["repo"], ran.json["filename"]) == ("org/name", "y.json")
    assert "y.json" in owner.files("org/name", "v1")
    with pytest.raises(ConfigError, match="without a held-out table"):
        tiny().push_to_hub("org/name", result={"front": []})
    (tmp_path / "empty").mkdir()
    refused("push", tmp_path / "empty", "org/name", has=["has no config.json", "prunetune export"])
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    before = json.dumps(sorted(owner.files("org/name")))
    refused("push", path, "org/name", has=["cannot send to", "refuses it (403)", "hf auth login"])
    refused("push", path, "org", has=["'org' is no repository", "allowed: ORG/NAME"])
    assert json.dumps(sorted(owner.files("org/name"))) == before


def test_push_a_run_with_its_held_out_table(owner, tmp_path):
    from fakes import spec
    from made_studies import Asked

    from prunetune.study.study import run_search

    run_search(spec(trials=4, presets=["uniform"]), Asked(), Asked(seed=1), out=tmp_path / "out")
    ran = call("push", tmp_path / "out", "org/run", "--json")
    assert ran.status == 0, ran.err
    assert ran.json["held_out_table"] is True
    card = owner.files("org/run")["README.md"].decode()
    assert "| **this config** |" in card
    assert str(tmp_path) not in card
    assert "<script>" not in card
    other = tiny().save(tmp_path / "other.json")
    refused(
        *("push", other, "org/run", "--held-out-of", tmp_path / "out"),
        has=["prunes otherwise than CONFIG"],
    )
