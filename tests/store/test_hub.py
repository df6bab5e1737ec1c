"""Push and pull against a real server on the loopback: `hub_server.py`, a process of its own.

The clients are processes of their own too, because huggingface_hub reads its environment when it
is imported. Each does several things and prints what came of them; the tests look at that.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import adapterx
from adapterx.errors import ConfigError, FormatError
from adapterx.store.hub import is_repo_id, pull, push_folder

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
        kind = {"error": type(error).__name__, "exit_code": error.exit_code, "cause": cause}
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
attempt("folder", lambda: pull("alice/topics"))
attempt("commit", lambda: pull("alice/topics", revision=sys.argv[2]))
attempt("with its token", lambda: pull("alice/secret"))
facts = pull_cards("alice/reused")
outcomes["cards"] = [path.name for path in facts.rglob("*") if path.is_file()]
told = subprocess.run(
    [sys.executable, "-m", "adapterx", "languages", "alice/reused", "--json"],
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
            "PYTHONPATH": str(Path(adapterx.__file__).parents[1]),
        }
        script = f"{PRELUDE}\n{dedent(code)}\nprint(json.dumps(outcomes))"
        done = subprocess.run(
            [sys.executable, "-c", script, str(self.scratch), *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            env={**kept, **own, **environment},
        )
        assert done.returncode == 0, done.stderr
        outcomes: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return outcomes

    def files(self, repo_id: str, branch: str = "main") -> dict[str, bytes]:
        """Return the files of a branch, as the server has them."""
        state = json.loads((self.root / repo_id / "repo.json").read_text())
        commit = self.root / repo_id / state["branches"][branch]
        return {path.name: path.read_bytes() for path in commit.iterdir()}

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
    assert outcome["exit_code"] == 1
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


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("alice/topics", True),
        ("AI-Lab/m_2.1", True),
        ("topics", False),
        ("./a/b", False),
        ("./a", False),
        ("../a", False),
        ("~/a", False),
        ("/a/b", False),
        ("/a", False),
        ("a/", False),
        ("a/b/c", False),
        ("a/b--c", False),
        ("a/b c", False),
        ("a/b.git", False),
        ("a/" + "b" * 97, False),
        ("", False),
    ],
)
def test_repo_id_is_user_and_repo_and_never_a_path(text: str, answer: bool) -> None:
    assert is_repo_id(text) is answer


@pytest.mark.parametrize("repo_id", ["topics", "./a/b", "a/b/c", "a/b--c"])
def test_what_cannot_be_a_repository_is_wrong_usage(repo_id: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be a repository of the Hub. Give user/repo"):
        pull(repo_id)
    with pytest.raises(ConfigError, match=r"cannot be a repository of the Hub. Give user/repo"):
        push_folder(tmp_path, repo_id, private=None, revision=None, token=None)


def test_folder_without_an_adapter_is_not_pushed(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"There is no adapterx.json in .*: it holds no adapter"):
        push_folder(tmp_path, "alice/topics", private=None, revision=None, token=None)
