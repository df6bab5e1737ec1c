"""Push and pull against a real server on the loopback: `hub_server.py`, a process of its own.

The clients are processes of their own too, because huggingface_hub reads its environment when it
is imported. Each does several things and prints what came of them; the tests look at that.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import adapterx
from adapterx.errors import ConfigError, FormatError
from adapterx.store.adapterhub.writing import export_folder
from adapterx.store.hub import pull, push_folder, repository

HERE = Path(__file__).parent
# What every client begins with. The seed gives each of them the same base.
PRELUDE = """
import json, os, subprocess, sys
from pathlib import Path
import torch
from transformers import BertConfig, BertForSequenceClassification
import adapterx
from adapterx.registry import adapter_modules
from adapterx.store.hub import pull, pull_cards, push_folder

scratch = Path(sys.argv[1])
adapterx_cli = [sys.executable, "-m", "adapterx"]
outcomes = {}

def build():
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    return BertForSequenceClassification(BertConfig(vocab_size=100, **sizes)).eval()

def answers(model, name):
    with adapterx.using(model, name), torch.no_grad():
        return model(input_ids=torch.arange(2, 26).reshape(3, 8)).logits

def attempt(what, call):
    try:
        outcomes[what] = {"value": str(call())}
    except adapterx.AdapterError as error:
        cause = type(error.__cause__).__name__
        kind = {"error": type(error).__name__, "cause": cause}
        outcomes[what] = {**kind, "text": str(error)}
"""
PUSH = """
def train(model, name):
    for _, module in adapter_modules(model, name):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return model

model = build()
adapterx.add(model, "topics", "seq_bn", labels=["sport", "food", "law", "art"])
adapterx.add(model, "sw", "seq_bn_inv", kind="language", language="sw")
for branch in ("main", "v2"):
    torch.save(answers(train(model, "topics"), "topics"), scratch / f"{branch}.pt")
    revision = None if branch == "main" else branch
    attempt(branch, lambda: adapterx.push(model, "topics", "alice/topics", revision=revision))
attempt("secret", lambda: adapterx.push(model, "topics", "alice/secret", private=True))
attempt("again", lambda: adapterx.push(model, "topics", "alice/secret", private=True))

adapterx.activate(model, "Stack(Scale(sw, 0.5), topics)")
torch.save(answers(model, "Stack(Scale(sw, 0.5), topics)"), scratch / "setup.pt")
setup = "Stack(Scale(sw, 0.5), topics)"
listed = build()
listed.config._name_or_path = "org/tiny"
adapterx.add(listed, "sw", "lora", kind="language")
adapterx.add(listed, "topics", "lora", labels=["a", "b", "c"])
licence = {"licence": "apache-2.0"}
attempt("listed", lambda: adapterx.push(listed, "sw", "alice/swahili", card=licence))
attempt("hidden", lambda: adapterx.push(listed, "sw", "alice/swahili-secret", private=True))
attempt("both", lambda: adapterx.push(listed, "Stack(sw, topics)", "alice/swahili-topics"))
attempt("setup", lambda: adapterx.push(model, setup, "alice/setup"))
attempt("setup over an adapter", lambda: adapterx.push(model, setup, "alice/mixed"))
attempt("smaller setup", lambda: adapterx.push(model, "Stack(topics)", "alice/mixed"))
adapterx.activate(model, None)

folder = adapterx.save(model, "topics", scratch / "topics")
(folder / "optimizer.pt").write_text("not for the world")
before = {path.name: path.read_bytes() for path in folder.iterdir()}
plain = dict(private=None, revision=None, token=None)
attempt("task", lambda: push_folder(folder, "alice/reused", **plain))
outcomes["folder kept"] = before == {path.name: path.read_bytes() for path in folder.iterdir()}
attempt("language", lambda: adapterx.push(model, "sw", "alice/reused"))
"""
PULL = """
for branch in ("main", "v2"):
    model = build()
    adapterx.load(model, "alice/topics", revision=None if branch == "main" else branch)
    pushed = torch.load(scratch / f"{branch}.pt")
    outcomes[branch] = torch.equal(answers(model, "topics"), pushed)
    outcomes[f"{branch} differs from the base"] = not torch.equal(answers(model, None), pushed)
model = adapterx.attach(build(), task="alice/topics@v2")
outcomes["by its name"] = torch.equal(answers(model, "topics"), torch.load(scratch / "v2.pt"))
as_setup = torch.load(scratch / "setup.pt")
for name, take in {
    "load": lambda model: adapterx.load(model, "alice/setup@main"),
    "attach": lambda model: adapterx.attach(model, compose="alice/setup"),
}.items():
    model = take(build())
    setup = adapterx.summary(model).active
    outcomes[f"setup by {name}"] = setup, torch.equal(answers(model, setup), as_setup)
attempt("setup as a task", lambda: adapterx.attach(build(), task="alice/setup"))
attempt("task as a setup", lambda: adapterx.attach(build(), compose="alice/topics"))
told = subprocess.run(
    [*adapterx_cli, "pull", "alice/setup", "--store", str(scratch / "setup store"), "--json"],
    stdout=subprocess.PIPE,
    check=True,
)
outcomes["setup in the store"] = json.loads(told.stdout)
composition = outcomes["setup in the store"]["composition"]
model = adapterx.attach(build(), compose=composition, store=scratch / "setup store")
outcomes["setup from the store"] = torch.equal(answers(model, composition), as_setup)
attempt("folder", lambda: pull("alice/topics"))
attempt("commit", lambda: pull("alice/topics", revision=sys.argv[2]))
attempt("with its token", lambda: pull("alice/secret"))
facts = pull_cards("alice/reused")
outcomes["cards"] = [path.name for path in facts.rglob("*") if path.is_file()]
told = subprocess.run(
    [*adapterx_cli, "languages", "alice/reused", "--json"],
    stdout=subprocess.PIPE,
    check=True,
)
outcomes["served"] = json.loads(told.stdout)
outcomes["earlier commit"] = sys.argv[3]
attempt("earlier", lambda: pull("alice/reused", revision=sys.argv[3]))
"""
REFUSED = """
def push(to, token=None, private=None, revision=None, folder=scratch / "topics"):
    return push_folder(folder, to, private=private, revision=revision, token=token)

attempt("private without token", lambda: pull("alice/secret"))
attempt("missing", lambda: pull("alice/nothing"))
attempt("missing revision", lambda: pull("alice/topics", revision="v9"))
attempt("not an adapter", lambda: pull("alice/encoder"))
attempt("push without token", lambda: push("alice/new"))
attempt("push to another's", lambda: push("alice/topics", "hf_bob"))
attempt("push under another's name", lambda: push("alice/new", "hf_bob"))
attempt("private on a public one", lambda: push("alice/topics", "hf_alice", private=True))
readme = scratch / "topics" / "README.md"
readme.write_text("---\\nlanguage: zh-CN\\n---\\n")
attempt("bad card", lambda: push("alice/topics", "hf_alice"))
os.environ["HF_TOKEN"] = "hf_bob"
attempt("private with another's token", lambda: pull("alice/secret"))
"""
CACHED = """
model = adapterx.load(build(), "alice/topics")
outcomes["cached"] = torch.equal(answers(model, "topics"), torch.load(scratch / "main.pt"))
attempt("not cached", lambda: pull("alice/other"))
adapterx.add(model, "new", "seq_bn")
attempt("push", lambda: adapterx.push(model, "new", "alice/new"))
"""
# Each fault: the folders of the cache and the store are taken away, then a pull is tried.
FAULTY = """
import contextlib, io, shutil, time
from adapterx.cli import main

def tree(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

root, store, cache = (Path(path) for path in sys.argv[2:5])
adapterx.save(adapterx.add(build(), "own", "seq_bn"), "own", store / "base" / "own")
for name, faults in json.loads(sys.argv[5]).items():
    shutil.rmtree(cache, ignore_errors=True)
    before = tree(store)
    (root / "faults.json").write_text(json.dumps(faults))
    said, start = io.StringIO(), time.monotonic()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(["pull", "alice/topics", "--store", str(store)])
    told = {"code": code, "text": said.getvalue(), "seconds": time.monotonic() - start}
    told["kept"] = {**tree(store), **before} == tree(store)
    told["left"] = [fault["times"] for fault in json.loads((root / "faults.json").read_text())]
    told["same"] = tree(store) == before
    (root / "faults.json").unlink()
    # Afterwards all is well again.
    with contextlib.redirect_stdout(io.StringIO()):
        told["then"] = main(["pull", "alice/topics", "--store", str(store)])
    loaded = adapterx.load(build(), store / "bert-2x32" / "topics")
    told["equal"] = torch.equal(answers(loaded, "topics"), torch.load(scratch / "main.pt"))
    shutil.rmtree(store / "bert-2x32")
    outcomes[name] = told
"""


class Hub:
    """A server that runs, and what its clients share."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address = address
        self.root, self.scratch, self.log = folder / "root", folder / "scratch", folder / "log"

    def client(self, code: str, *arguments: str, **environment: str) -> dict[str, Any]:
        """Run a client to its end; what came of it, and what it wrote on stderr."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        own = {
            "HF_ENDPOINT": self.address,
            # Xet, which the Hub prefers for large files, would need a second server.
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "PYTHONPATH": str(Path(adapterx.__file__).parents[1]),
        }
        script = f"{PRELUDE}\n{dedent(code)}\nprint(json.dumps(outcomes))"
        done = subprocess.run(
            [sys.executable, "-c", script, str(self.scratch), *arguments],
            capture_output=True,
            text=True,
            timeout=300,
            env={**kept, **own, **environment},
        )
        assert done.returncode == 0, done.stderr
        outcomes: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return outcomes

    def files(self, repo_id: str, branch: str = "main") -> dict[str, bytes]:
        """Return the files of a branch, as the server has them."""
        state = json.loads((self.root / repo_id / "repo.json").read_text())
        commit = self.root / repo_id / state["branches"][branch]
        files = [path for path in commit.rglob("*") if path.is_file()]
        return {path.relative_to(commit).as_posix(): path.read_bytes() for path in files}

    def requests(self, text: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if text in line]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    for name in ("root", "scratch"):
        (folder / name).mkdir()
    command = [sys.executable, str(HERE / "hub_server.py"), "--root", str(folder / "root")]
    pipe = subprocess.PIPE
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        yield Hub(process.stdout.readline().strip(), folder)
        process.stdin.close()  # it stops then
        assert process.wait(timeout=10) == 0


@pytest.fixture(scope="module")
def pushed(hub: Hub) -> dict[str, Any]:
    return hub.client(PUSH, HF_HOME=str(hub.scratch / "pusher"), HF_TOKEN="hf_alice")


@pytest.fixture(scope="module")
def pulled(hub: Hub, pushed: dict[str, Any]) -> dict[str, Any]:
    commits = [pushed[what]["value"].rsplit("/", 1)[1] for what in ("main", "task")]
    home = str(hub.scratch / "puller")
    return hub.client(PULL, *commits, HF_HOME=home, HF_TOKEN="hf_alice")


@pytest.fixture(scope="module")
def refused(hub: Hub, pushed: dict[str, Any]) -> dict[str, Any]:
    commit = "0" * 40
    encoder = hub.root / "alice" / "encoder"
    (encoder / commit).mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "README.md"):
        (encoder / commit / name).write_text("{}")
    (encoder / "repo.json").write_text(json.dumps({"private": False, "branches": {"main": commit}}))
    return hub.client(REFUSED, HF_HOME=str(hub.scratch / "stranger"))


@pytest.mark.slow
def test_push_returns_the_address_of_a_commit(hub: Hub, pushed: dict[str, Any]) -> None:
    for what in ("main", "v2", "secret", "task", "language"):
        assert pushed[what]["value"].startswith(f"{hub.address}/alice/"), pushed[what]
        assert "/commit/" in pushed[what]["value"]


@pytest.mark.slow
def test_push_is_one_commit(hub: Hub, pushed: dict[str, Any]) -> None:
    assert len(hub.requests("POST /api/models/alice/topics/commit/main")) == 1
    # The same folder again is no commit at all.
    assert pushed["again"] == pushed["secret"]
    assert len(hub.requests("POST /api/models/alice/secret/commit/main")) == 1


@pytest.mark.slow
def test_model_card_on_the_hub_names_its_repository(hub: Hub, pushed: dict[str, Any]) -> None:
    card = hub.files("alice/topics")["README.md"].decode()
    assert "library_name: adapterx" in card.split("---")[1]
    assert 'adapterx.attach(model, task="alice/topics")' in card
    assert "path/to" not in card


SETUP = "Stack(Scale(sw, 0.5), topics)"


@pytest.mark.slow
def test_a_setup_is_one_repository(hub: Hub, pushed: dict[str, Any]) -> None:
    files = set(hub.files("alice/setup"))
    parts = ("README.md", "adapter_config.json", "adapter_model.safetensors", "adapterx.json")
    assert files == {
        ".gitattributes",
        "README.md",
        "adapterx_setup.json",
        *(f"adapters/{name}/{part}" for name in ("sw", "topics") for part in parts),
        "adapters/topics/head.safetensors",
    }
    card = hub.files("alice/setup")["README.md"].decode()
    assert 'adapterx.load(model, "alice/setup")' in card
    assert "path/to" not in card
    assert len(hub.requests("POST /api/models/alice/setup/commit/main")) == 1


@pytest.mark.slow
def test_what_a_smaller_setup_leaves_out_does_not_stay(hub: Hub, pushed: dict[str, Any]) -> None:
    assert "value" in pushed["smaller setup"]
    folders = {name.split("/")[1] for name in hub.files("alice/mixed") if "/" in name}
    assert folders == {"topics"}


@pytest.mark.slow
def test_pushed_setup_comes_back_active_to_equal_output(pulled: dict[str, Any]) -> None:
    assert pulled["setup by load"] == [SETUP, True]
    assert pulled["setup by attach"] == [SETUP, True]
    assert pulled["setup in the store"]["composition"] == SETUP
    assert set(pulled["setup in the store"]["adapters"]) == {"sw", "topics"}
    assert pulled["setup from the store"]


@pytest.mark.slow
def test_a_setup_is_no_adapter_and_an_adapter_no_setup(pulled: dict[str, Any]) -> None:
    assert "attach(model, compose='alice/setup')" in pulled["setup as a task"]["text"]
    assert "holds an adapter, not a composition" in pulled["task as a setup"]["text"]


# Pushes from a store by the command line: with the scores of a run, and as a composition.
FROM_STORE = """
import contextlib, io
from adapterx.cli import main
from adapterx.evaluation.manifest import digest
from adapterx.store.card import base_of

store, results = scratch / "cli store", scratch / "results"
model = build()
adapterx.add(model, "topics", "seq_bn", labels=["sport", "food", "law", "art"])
adapterx.add(model, "sw", "seq_bn_inv", kind="language")
for name in ("topics", "sw"):
    adapterx.save(model, name, store / "base" / name)
results.mkdir()
cell = {"scores": {"accuracy": {"value": 0.75, "low": 0.5, "high": 1.0}}}
row = {"tag": "sw", "examples": 4, "cells": {"task": cell, "own": None}}
table = {"score": "accuracy", "rows": [row]}
manifest = {
    "command": ["adapterx", "evaluate"],
    "finished": "2026-01-01",
    "adapters": {"topics": {}},
    "encoder": {"fingerprint_sha256": digest(base_of(model).fingerprint)},
}
(results / "table.json").write_text(json.dumps(table))
(results / "manifest.json").write_text(json.dumps(manifest))

def command(*arguments):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main([*arguments, "--store", str(store)])
    return code, said.getvalue()

scored = ("--scores", str(results), "--licence", "mit")
outcomes["scored"] = command("push", "topics", "alice/scored", *scored)
outcomes["again"] = command("push", "topics", "alice/scored", *scored)
outcomes["setup"] = command("push", "Stack(sw, topics)", "alice/from-store")
outcomes["misspelt"] = command("push", "Stack(sw, topic)", "alice/from-store")
outcomes["setup with scores"] = command("push", "Stack(sw, topics)", "alice/from-store", *scored)
outcomes["pulled"] = command("pull", "alice/scored@main")
"""


@pytest.mark.slow
def test_scores_of_a_run_and_compositions_are_pushed_from_the_store(hub: Hub) -> None:
    home = str(hub.scratch / "cli")
    done = hub.client(FROM_STORE, HF_HOME=home, HF_TOKEN="hf_alice")
    assert {name: code for name, (code, _) in done.items()} == {
        "scored": 0,
        "again": 0,
        "setup": 0,
        "misspelt": 2,
        "setup with scores": 2,
        "pulled": 0,
    }, done
    assert done["again"] == done["scored"]  # nothing new: the same commit
    assert "Did you mean 'topics'?" in done["misspelt"][1]
    assert "on the card of one adapter" in done["setup with scores"][1]
    card = hub.files("alice/scored")["README.md"].decode()
    assert "| sw | 0.750 (0.50 to 1.00) |" in card.splitlines()
    assert "license: mit" in card
    assert 'adapterx.attach(model, task="alice/scored")' in card
    facts = json.loads(hub.files("alice/scored")["adapterx.json"])["facts"]
    assert facts["evaluation"]["languages"]["sw"]["task"]["value"] == 0.75
    setup = json.loads(hub.files("alice/from-store")["adapterx_setup.json"])
    assert setup["composition"] == {"stack": ["sw", "topics"]}
    assert "adapters/sw/adapter_model.safetensors" in hub.files("alice/from-store")


# A download that was given up half-way, and then the Hub is away.
HALF = """
import contextlib, io
from adapterx.cli import main

said = io.StringIO()
with contextlib.redirect_stderr(said):
    code = main(["pull", "alice/topics", "--store", str(scratch / "half store")])
outcomes["half"] = code, said.getvalue()
outcomes["store"] = (scratch / "half store").exists()
attempt("loaded", lambda: adapterx.load(build(), "alice/topics"))
"""


@pytest.mark.slow
def test_half_a_download_is_one_line_and_registers_nothing(
    hub: Hub, pulled: dict[str, Any]
) -> None:
    home = hub.scratch / "half"
    shutil.copytree(hub.scratch / "puller", home, symlinks=True)
    for weights in home.rglob("snapshots/*/adapter_model.safetensors"):
        weights.unlink()
    half = hub.client(HALF, HF_HOME=str(home), HF_HUB_OFFLINE="1")
    code, said = half["half"]
    assert code == 2
    assert "only adapters pulled before are at hand" in said
    assert said.startswith("adapterx: ")
    assert said.count("\n") == 1
    assert not half["store"]
    assert half["loaded"]["error"] == "HubError"


SEARCH = """
import contextlib, io
from dataclasses import asdict
from adapterx.cli import main
from adapterx.store.hub import search

outcomes["all"] = [one.repo_id for one in search("")]
outcomes["two"] = [one.repo_id for one in search("", limit=2)]
outcomes["query"] = [asdict(one) for one in search("swahili")]
outcomes["base"] = [asdict(one) for one in search("", base="org/tiny")]
outcomes["other base"] = [one.repo_id for one in search("", base="org/other")]
said = io.StringIO()
with contextlib.redirect_stdout(said):
    outcomes["code"] = main(["list", "--hub", "swahili", "--base", "org/tiny"])
outcomes["said"] = said.getvalue()
os.environ["HF_TOKEN"] = "hf_alice"
outcomes["own"] = [one.repo_id for one in search("swahili-secret")]
"""


@pytest.mark.slow
def test_adapters_are_found_on_the_hub(hub: Hub, pushed: dict[str, Any]) -> None:
    for number, (name, library) in enumerate({"p": "peft", "a": "adapter-transformers"}.items()):
        folder = hub.root / "bob" / f"swahili-{name}"
        (folder / "1").mkdir(parents=True)
        card = f"---\nlibrary_name: {library}\nbase_model: org/tiny\n---\n"
        (folder / "1" / "README.md").write_text(card)
        state = {"private": False, "branches": {"main": "1"}, "downloads": 10 + number}
        (folder / "repo.json").write_text(json.dumps(state))
    found = hub.client(SEARCH, HF_HOME=str(hub.scratch / "searcher"))
    ours = {"alice/topics", "alice/setup", "alice/swahili", "alice/swahili-topics"}
    assert ours <= set(found["all"])
    assert not [repo for repo in found["all"] if "secret" in repo or repo.startswith("bob")]
    assert len(found["two"]) == 2
    common = {"library": "adapterx", "languages": ["sw"], "base": "org/tiny", "downloads": 0}
    mine = [
        {"repo_id": "alice/swahili", "kind": "language", **common},
        {"repo_id": "alice/swahili-topics", "kind": "setup", **common},
    ]
    assert found["query"] == mine
    unsaid = {"kind": None, "languages": [], "base": "org/tiny"}
    assert found["base"] == [
        {"repo_id": "bob/swahili-a", "library": "adapter-transformers", "downloads": 11, **unsaid},
        {"repo_id": "bob/swahili-p", "library": "peft", "downloads": 10, **unsaid},
        *mine,
    ]
    assert found["other base"] == []
    assert found["own"] == ["alice/swahili-secret"]
    assert found["code"] == 0
    lines = [line.split() for line in found["said"].splitlines()]
    assert [line[0] for line in lines] == [one["repo_id"] for one in found["base"]]
    assert lines[2][1:] == ["language", "sw", "org/tiny", "0", "downloads", "adapterx"]
    card = hub.files("alice/swahili")["README.md"].decode().split("---")[1]
    assert "license: apache-2.0" in card
    assert "base_model_relation: adapter" in card


@pytest.mark.slow
def test_a_revision_stands_in_the_name(pulled: dict[str, Any]) -> None:
    assert pulled["by its name"]


@pytest.mark.slow
def test_languages_of_a_repository_are_listed_from_its_cards_alone(pulled: dict[str, Any]) -> None:
    assert pulled["cards"] == ["adapterx.json"]
    (served,) = pulled["served"]["languages"]
    assert (served["tag"], served["adapters"]) == ("sw", ["sw"])


@pytest.mark.slow
def test_push_leaves_the_folder_as_it_is(pushed: dict[str, Any]) -> None:
    assert pushed["folder kept"]


@pytest.mark.slow
def test_only_an_adapters_files_are_on_the_hub(hub: Hub, pushed: dict[str, Any]) -> None:
    assert set(hub.files("alice/topics")) == {
        ".gitattributes",
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "adapterx.json",
        "head.safetensors",
    }


@pytest.mark.slow
def test_head_of_a_former_task_does_not_stay(hub: Hub, pushed: dict[str, Any]) -> None:
    assert "value" in pushed["task"]
    assert "head.safetensors" not in hub.files("alice/reused")


@pytest.mark.slow
def test_pushed_adapter_pulls_to_equal_output(pulled: dict[str, Any]) -> None:
    assert pulled["main"]
    assert pulled["main differs from the base"]


@pytest.mark.slow
def test_branch_is_pushed_beside_main_and_pulled_by_name(hub: Hub, pulled: dict[str, Any]) -> None:
    weights = "adapter_model.safetensors"
    assert hub.files("alice/topics", "v2")[weights] != hub.files("alice/topics")[weights]
    assert pulled["v2"]
    assert pulled["v2 differs from the base"]


@pytest.mark.slow
def test_pull_gives_a_folder_in_the_ordinary_cache(hub: Hub, pulled: dict[str, Any]) -> None:
    folder = Path(pulled["folder"]["value"])
    cache = hub.scratch / "puller" / "hub" / "models--alice--topics" / "snapshots"
    assert folder.parent == cache
    assert pulled["commit"] == pulled["folder"]
    assert ".gitattributes" not in {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_earlier_commit_is_pulled_by_its_name(hub: Hub, pulled: dict[str, Any]) -> None:
    assert pulled["earlier"]["value"].endswith(pulled["earlier commit"])
    assert (Path(pulled["earlier"]["value"]) / "head.safetensors").is_file()
    assert "head.safetensors" not in hub.files("alice/reused")


@pytest.mark.slow
def test_server_sends_parts_of_a_file(hub: Hub, pushed: dict[str, Any]) -> None:
    whole = hub.files("alice/topics")["head.safetensors"]
    request = urllib.request.Request(
        f"{hub.address}/alice/topics/resolve/main/head.safetensors", headers={"Range": "bytes=8-99"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 206
        assert answer.headers["Content-Range"] == f"bytes 8-99/{len(whole)}"
        assert answer.read() == whole[8:100]


@pytest.mark.slow
def test_private_repository_opens_with_its_token(hub: Hub, pulled: dict[str, Any]) -> None:
    assert json.loads((hub.root / "alice/secret/repo.json").read_text())["private"] is True
    assert json.loads((hub.root / "alice/topics/repo.json").read_text())["private"] is False
    assert "models--alice--secret" in pulled["with its token"]["value"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("private without token", "Cannot pull 'alice/secret' ({hub}): it does not exist, or is"),
        ("private with another's token", "private and this token may not see it. Check the name;"),
        ("missing", "Cannot pull 'alice/nothing' ({hub}): it does not exist, or is private"),
        ("missing revision", "it has no revision 'v9'. Give a branch, tag or commit"),
        ("push without token", "Cannot push to 'alice/new' ({hub}): no valid access token (401: "),
        ("push to another's", "forbidden (403: You may not write to this repository). Use a token"),
        ("push under another's name", "forbidden (403: You may not create under alice)"),
        ("bad card", 'the Hub refused (400: "language" with value "zh-CN" is not valid.)'),
    ],
)
def test_what_the_hub_refuses_is_a_hub_error_of_one_line(
    hub: Hub, refused: dict[str, Any], what: str, text: str
) -> None:
    outcome = refused[what]
    assert outcome["error"] == "HubError", outcome
    assert text.format(hub=hub.address) in outcome["text"]
    assert "\n" not in outcome["text"]
    assert outcome["cause"] != "NoneType"


@pytest.mark.slow
def test_repository_without_an_adapter_is_refused_before_its_weights_are_fetched(
    hub: Hub, refused: dict[str, Any]
) -> None:
    assert refused["not an adapter"]["error"] == "FormatError"
    assert refused["not an adapter"]["text"].startswith(
        "There is no adapterx.json in 'alice/encoder' at revision 'main': it holds no adapter"
    )
    assert hub.requests(f"/alice/encoder/resolve/{'0' * 40}/README.md")
    assert not hub.requests(f"/alice/encoder/resolve/{'0' * 40}/model.safetensors")


THEIRS = """
model = build()
try:
    adapterx.load(model, "alice/theirs")
except adapterx.AdapterError as error:
    outcomes["without leave"] = str(error)
adapterx.load(model, "alice/theirs", allow_pickle=True)
outcomes["equal"] = torch.equal(answers(model, "topics"), torch.load(scratch / "main.pt"))
adapterx.detach(model)
adapterx.attach(model, task="alice/theirs", allow_pickle=True)
outcomes["active"] = adapterx.summary(model).active
"""


@pytest.mark.slow
def test_repository_of_adapterhub_is_read(hub: Hub, pushed: dict[str, Any], tmp_path: Path) -> None:
    commit = hub.root / "alice" / "theirs" / ("1" * 40)
    commit.mkdir(parents=True)
    saved = tmp_path / "ours"
    saved.mkdir()
    for name, content in hub.files("alice/topics").items():
        (saved / name).write_bytes(content)
    for path in export_folder(saved, tmp_path / "theirs").iterdir():
        if path.suffix == ".json":
            (commit / path.name).write_bytes(path.read_bytes())
        else:  # pickled, as most of its repositories
            pickled = {"adapter": "pytorch_adapter", "model_head": "pytorch_model_head"}[path.stem]
            torch.save(load_file(path), commit / f"{pickled}.bin")
    (commit / "pytorch_model.bin").write_bytes(bytes(1000))
    state = {"private": False, "branches": {"main": commit.name}}
    (commit.parent / "repo.json").write_text(json.dumps(state))
    outcome = hub.client(THEIRS, HF_HOME=str(hub.scratch / "theirs"))
    assert "allow_pickle=True" in outcome["without leave"]
    assert outcome["equal"]
    assert outcome["active"] == "topics"
    assert hub.requests(f"/alice/theirs/resolve/{commit.name}/pytorch_adapter.bin")
    assert not hub.requests(f"/alice/theirs/resolve/{commit.name}/pytorch_model.bin")


@pytest.mark.slow
def test_private_push_does_not_go_to_a_public_repository(hub: Hub, refused: dict[str, Any]) -> None:
    assert refused["private on a public one"]["error"] == "ConfigError"
    assert "exists on" in refused["private on a public one"]["text"]


@pytest.mark.slow
def test_offline_uses_the_cache_and_says_what_is_not_in_it(
    hub: Hub, pulled: dict[str, Any]
) -> None:
    before = hub.log.read_text()
    home = str(hub.scratch / "puller")
    offline = hub.client(CACHED, HF_HOME=home, HF_TOKEN="hf_alice", HF_HUB_OFFLINE="1")
    assert offline["cached"]
    for what in ("not cached", "push"):
        assert offline[what]["error"] == "HubError"
        assert "HF_HUB_OFFLINE is set" in offline[what]["text"]
    assert hub.log.read_text() == before


@pytest.mark.slow
def test_server_that_is_down_is_a_hub_error_unless_cached(hub: Hub, pulled: dict[str, Any]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"  # bound, but nobody listens
        home = str(hub.scratch / "puller")
        down = hub.client(CACHED, HF_HOME=home, HF_TOKEN="hf_alice", HF_ENDPOINT=address)
    assert down["cached"]
    for what in ("not cached", "push"):
        assert down[what]["error"] == "HubError"
        assert f"({address}): the Hub cannot be reached (ConnectError:" in down[what]["text"]


def _fault(path: str, times: int = 1000, method: str = "GET", **what: Any) -> dict[str, Any]:
    return {"path": path, "times": times, "method": method, **what}


INFO, WEIGHTS, CARD = "/api/models/", "adapter_model.safetensors$", "adapterx.json$"
SOON = {"Retry-After": "0"}
# Fault → what is said, None if the pull gets over it
FAULTS: dict[str, tuple[dict[str, Any], str | None]] = {
    "401": (_fault(INFO, status=401), "Cannot pull 'alice/topics' ({hub}): no valid access token"),
    "401 of a file": (_fault(WEIGHTS, method="HEAD", status=401), "access token"),
    "403": (_fault(INFO, status=403), "forbidden (403: "),
    "403 of a file": (_fault(WEIGHTS, status=403), "forbidden (403: "),
    "404": (
        _fault(INFO, status=404, headers={"X-Error-Code": "RepoNotFound"}),
        "it does not exist, or is private",
    ),
    "404 of a file": (
        _fault(WEIGHTS, status=404, headers={"X-Error-Code": "EntryNotFound"}),
        "the Hub refused (404: ",
    ),
    "429 for a while": (_fault(WEIGHTS, times=2, status=429, headers=SOON), None),
    "429": (_fault(WEIGHTS, status=429, headers=SOON), "busy (429: "),
    "500": (_fault(WEIGHTS, status=500), "out of order or busy (500: "),
    "503": (_fault(INFO, status=503), "out of order or busy (503: "),
    "cut once": (_fault(WEIGHTS, times=1, cut=1000), None),
    "cut at the first byte": (_fault(WEIGHTS, times=1, cut=0), None),
    "cut of a card": (_fault(CARD, times=1, cut=10), None),
    "other weights": (_fault(WEIGHTS, garble=True), "another checksum than the Hub says"),
    "other card": (_fault(CARD, garble=True), "another checksum than the Hub says"),
}


@pytest.fixture(scope="module")
def faulty(hub: Hub, pushed: dict[str, Any]) -> dict[str, Any]:
    home, store = hub.scratch / "unlucky", hub.scratch / "store"
    faults = json.dumps({name: [fault] for name, (fault, _) in FAULTS.items()})
    arguments = (str(hub.root), str(store), str(home / "hub"), faults)
    return hub.client(FAULTY, *arguments, HF_HOME=str(home))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_hub_is_one_line_and_the_store_stays(
    hub: Hub, faulty: dict[str, Any], name: str
) -> None:
    told, text = faulty[name], FAULTS[name][1]
    assert told["left"] != [FAULTS[name][0]["times"]]  # it happened
    if text is None:
        assert (told["code"], told["text"]) == (0, "")
    else:
        assert told["code"] == 2
        assert text.format(hub=hub.address) in told["text"]
        assert told["text"].startswith("adapterx: ")
        assert told["text"].count("\n") == 1
        assert told["same"]
    assert told["kept"]
    assert told["then"] == 0
    assert told["equal"]


BROKEN = """
model = build()
adapterx.add(model, "large", adapterx.LoRA(rank=4096, targets="all"), kind="language")
folder = adapterx.save(model, "large", scratch / "large")
push_folder(folder, "alice/large", token="hf_alice")
fault = {"method": "GET", "path": "safetensors$", "times": 1, "cut": 11_000_000}
(Path(sys.argv[2]) / "faults.json").write_text(json.dumps([fault]))
weights = "adapter_model.safetensors"
pulled = pull("alice/large")
outcomes["equal"] = (pulled / weights).read_bytes() == (folder / weights).read_bytes()
outcomes["size"] = (pulled / weights).stat().st_size
"""


@pytest.mark.slow
def test_a_broken_transfer_goes_on_where_it_was(hub: Hub) -> None:
    done = hub.client(BROKEN, str(hub.root), HF_HOME=str(hub.scratch / "broken"))
    assert done["equal"]
    # The client keeps what it has in pieces of 10 MiB.
    span = f"bytes {10 << 20}-{done['size'] - 1}/{done['size']}"
    assert hub.requests(f"{span} of adapter_model.safetensors")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("alice/topics", ("alice/topics", None)),
        ("AI-Lab/m_2.1", ("AI-Lab/m_2.1", None)),
        ("alice/topics@v2", ("alice/topics", "v2")),
        ("alice/topics@refs/pr/1", ("alice/topics", "refs/pr/1")),
        ("alice/topics@" + "0" * 40, ("alice/topics", "0" * 40)),
        ("alice/topics@", None),
        ("alice/topics@v 2", None),
        ("alice/topics@v2@v3", None),
        ("topics@v2", None),
        ("a@v2/b", None),
        ("topics", None),
        ("./a/b", None),
        ("./a", None),
        ("../a", None),
        ("~/a", None),
        ("/a/b", None),
        ("/a", None),
        ("a/", None),
        ("a/b/c", None),
        ("a/b--c", None),
        ("a/b c", None),
        ("a/b.git", None),
        ("a/" + "b" * 97, None),
        ("", None),
    ],
)
def test_repository_is_user_and_repo_and_never_a_path(text: str, answer: Any) -> None:
    assert repository(text) == answer
    assert repository(text, "v1") == (answer and (answer[0], answer[1] or "v1"))


@pytest.mark.parametrize("repo_id", ["topics", "./a/b", "a/b/c", "a/b--c", "a/b@"])
def test_what_cannot_be_a_repository_is_wrong_usage(repo_id: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be a repository of the Hub. Give user/repo"):
        pull(repo_id)
    with pytest.raises(ConfigError, match=r"cannot be a repository of the Hub. Give user/repo"):
        push_folder(tmp_path, repo_id)


def test_a_push_goes_to_a_branch_by_its_setting_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"to pull a revision, user/repo@revision"):
        push_folder(tmp_path, "alice/topics@v2")


def test_folder_without_an_adapter_is_not_pushed(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"There is no adapterx.json in .*: it holds no adapter"):
        push_folder(tmp_path, "alice/topics")
