"""Model cards: what the Hub reads of them, and that nothing in one opens a tag."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

import adapterx
from adapterx.cli import main
from adapterx.encoders import load_encoder
from adapterx.evaluation.scores import scores_of
from adapterx.heads import Labels
from adapterx.store.card import Base, Card
from adapterx.store.model_card import model_card, setup_card

BASE = Base("xlm-roberta", "FacebookAI/xlm-roberta-base", 768, 12, 250_002, (0.5,))
EVIL = '<script>alert(1)</script><img src=x onerror=alert(1)> | `a` "b" [x](javascript:alert(1))'
TASK = Card(
    name="topics",
    kind="task",
    base=BASE,
    language="en",
    labels=Labels(("law", "sport")),
    model_class="XLMRobertaForSequenceClassification",
    facts={
        "licence": "apache-2.0",
        "training": {"learning_rate": 1e-3, "epochs": 3},
        "evaluation": {
            "score": "accuracy",
            "command": "adapterx evaluate --task topics",
            "languages": {
                "en": {"task": {"value": 0.9766, "low": 0.94, "high": 1.0}},
                "sw": {
                    "task": {"value": 0.738, "low": 0.64, "high": 0.83},
                    "own": {"value": 0.786, "low": 0.69, "high": 0.87},
                },
            },
        },
    },
)
LANGUAGE = Card(name="no", kind="language", base=BASE, language="no", strength=0.5)
SIZES = {"adapter_model.safetensors": 1_234_567, "head.safetensors": 6_000}


def _metadata(text: str) -> dict[str, Any]:
    read = yaml.safe_load(text.split("---")[1])
    # The Hub's own reader agrees.
    assert ModelCard(text).data.to_dict().get("library_name") == read["library_name"]
    return read


def test_metadata_of_a_task_is_the_hubs() -> None:
    data = _metadata(model_card(TASK, "LoRA()", SIZES))
    results = data.pop("model-index")
    assert data == {
        "base_model": "FacebookAI/xlm-roberta-base",
        "base_model_relation": "adapter",
        "language": "en",
        "library_name": "adapterx",
        "license": "apache-2.0",
        "pipeline_tag": "text-classification",
        "tags": ["adapterx", "task-adapter", "xlm-roberta"],
    }
    (model,) = results
    assert model["name"] == "topics"
    told = {
        (one["dataset"]["config"], metric["name"]): metric["value"]
        for one in model["results"]
        for metric in one["metrics"]
    }
    assert told == {
        ("en", "accuracy, task"): 0.9766,
        ("sw", "accuracy, task"): 0.738,
        ("sw", "accuracy, own"): 0.786,
    }
    read = ModelCard(model_card(TASK, "LoRA()", SIZES)).data.eval_results
    assert {one.metric_type for one in read} == {"accuracy"}


def test_a_language_whose_tag_is_a_truth_value_of_yaml_stays_a_text() -> None:
    data = _metadata(model_card(LANGUAGE, "LoRA()", SIZES))
    assert data["language"] == "no"
    assert "license" not in data
    assert "model-index" not in data


def test_usage_is_four_lines() -> None:
    text = model_card(TASK, "LoRA()", SIZES)
    assert text.split("```")[1].splitlines() == [
        "python",
        "import adapterx",
        "from transformers import XLMRobertaForSequenceClassification",
        "model = XLMRobertaForSequenceClassification.from_pretrained"
        '("FacebookAI/xlm-roberta-base")',
        'adapterx.attach(model, task="path/to/this/folder")',
    ]
    assert len(setup_card("Stack(no, topics)", [LANGUAGE, TASK]).split("```")[1].splitlines()) == 5


@pytest.mark.parametrize("kind", ["sequence", "mean", "token"])
def test_usage_of_a_card_runs(kind, build, fill, tokenizer, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    build("bert", kind).save_pretrained("tiny")
    tokenizer.save_pretrained("tiny")
    head = {"token": "token"}.get(kind, "sequence")
    model, _ = load_encoder("tiny", head=head, pooling="mean" if kind == "mean" else "model")
    adapterx.add(model, "topics", "lora", labels=["a", "b"])
    fill(model)
    adapterx.save(model, "topics", "topics")
    code = Path("topics/README.md").read_text().split("```python")[1].split("```")[0]
    done: dict[str, Any] = {}
    exec(code.replace("path/to/this/folder", "topics"), done)
    assert type(done["model"]) is type(model)
    assert adapterx.summary(done["model"]).active == "topics"
    text = str(done["model"].config.id2label)
    assert text == "{0: 'a', 1: 'b'}"


@pytest.mark.parametrize(
    "changes",
    [
        {"model_class": "X; import os; os.system('evil')"},
        {"base": Base("bert", 'a/b"); import os; os.system("evil', 1, 1, 1, ())},
        {"base": Base("bert", 'b\\"); import os; os.system("evil', 1, 1, 1, ())},
    ],
)
def test_code_in_a_card_does_not_get_into_the_usage(changes: dict[str, Any]) -> None:
    text = model_card(replace(TASK, **changes), "LoRA()", SIZES)
    tree = ast.parse(text.split("```python")[1].split("```")[0])
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    assert [name.name for node in imported for name in node.names] == ["adapterx"]


def test_scores_sizes_and_facts_are_tables() -> None:
    text = model_card(TASK, "LoRA()", SIZES)
    for line in (
        "| language | task | own |",
        "| en | 0.977 (0.94 to 1.00) | – |",
        "| sw | 0.738 (0.64 to 0.83) | 0.786 (0.69 to 0.87) |",
        "| learning\\_rate | 0.001 |",
        "| `adapter_model.safetensors` | 1.23 MB |",
        "| `head.safetensors` | 0.01 MB |",
    ):
        assert line in text.splitlines(), line


def test_card_of_a_setup_names_its_adapters() -> None:
    text = setup_card("Stack(no, topics)", [LANGUAGE, TASK])
    data = _metadata(text)
    assert data["language"] == ["no", "en"]
    assert data["tags"] == ["adapterx", "language-adapter", "task-adapter", "xlm-roberta"]
    assert "license" not in data  # one of them says none
    assert "| topics | task | en | `law`, `sport` |" in text.splitlines()


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs


@pytest.mark.parametrize("evil", [EVIL, "</details>" + EVIL, "\\" + EVIL, "\n\n" + EVIL])
def test_nothing_of_a_card_opens_a_tag(evil: str) -> None:
    base = Base(EVIL, f"a/{EVIL}", 1, 1, 1, ())
    facts = {
        evil: {evil: evil},
        "licence": evil,
        "evaluation": {
            "score": evil,
            "command": evil,
            "languages": {evil: {evil: {"value": 0.5, "low": evil, "high": 1.0}}},
        },
    }
    card = Card(
        name="x", kind="task", base=base, language=EVIL, labels=Labels((evil, "b")), facts=facts
    )
    for text in (model_card(card, evil, {"a.safetensors": 1}), setup_card("x", [card])):
        yaml.safe_load(text.split("---")[1])
        seen = _Tags()
        body = text.partition("---\n")[2].partition("---\n")[2]
        seen.feed(MarkdownIt("commonmark", {"html": True}).enable("table").render(body))
        assert "table" in seen.tags
        assert not seen.tags & {"script", "img", "details", "a"}, seen.tags
        assert not [key for key, _ in seen.attributes if key.startswith("on") or key == "href"]


# Scores of a run, on the command line


@pytest.fixture
def results(tmp_path: Path, build: Any) -> Path:
    """A saved task, and a folder as ``evaluate --output`` writes it for that task."""
    from adapterx.evaluation.manifest import manifest_of
    from adapterx.evaluation.measured import Answered, Cost, Measured, Test
    from adapterx.evaluation.report.files import write_report
    from adapterx.evaluation.scoring import table_of
    from adapterx.tasks.classification import TextClassification

    model = build("bert", "sequence")
    adapterx.add(model, "topics", "lora", language="en", labels=["a", "b"])
    adapterx.save(model, "topics", tmp_path / "store" / "base" / "topics")
    cost = Cost(parameters=10, size_bytes=40, seconds=1.0)
    measured = Measured(
        name="topics",
        task=TextClassification(labels=("a", "b")),
        source="en",
        encoder="bert",
        encoder_parameters=100,
        tests={tag: Test(("x", "y", "z", "w"), (0, 1, 0, 1), ()) for tag in ("en", "sw")},
        answered=tuple(
            Answered(
                column="task",
                run="topics",
                language=tag,
                composition="topics",
                predictions=answers,
                cost=cost,
            )
            for tag, answers in {"en": (0, 1, 0, 1), "sw": (0, 1, 1, 1)}.items()
        ),
    )
    manifest = manifest_of(
        measured, model, files={}, command=["adapterx", "x"], seed=0, resamples=50, seconds=1.0
    )
    folder = tmp_path / "results"
    write_report(measured, table_of(measured, resamples=50), folder, manifest=manifest)
    return folder


def test_scores_are_those_of_the_run(results: Path) -> None:
    card = Card.read(results.parent / "store" / "base" / "topics")
    facts = scores_of(results, card)
    assert facts["score"] == "accuracy"
    languages: Any = facts["languages"]
    assert {tag: columns["task"]["value"] for tag, columns in languages.items()} == {
        "en": 1.0,
        "sw": 0.75,
    }
    assert languages["sw"]["task"]["examples"] == 4
    assert facts["command"] == "adapterx x"
    assert json.loads(json.dumps(facts)) == facts


def test_scores_of_another_adapter_base_or_folder_are_refused(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, manifest = results.parent / "store", results / "manifest.json"
    whole = json.loads(manifest.read_text())
    command = ["push", "topics", "a/b", "--store", str(store), "--scores", str(results)]
    for change, text in (
        ({"adapters": {"nli": {}}}, "was measured with nli, not with 'topics'"),
        ({"encoder": {"fingerprint_sha256": "0"}}, "was measured on another encoder"),
        ({"encoder": 3}, "holds no table of `adapterx evaluate --output`"),
    ):
        manifest.write_text(json.dumps({**whole, **change}))
        assert main(command) == 2
        assert text in capsys.readouterr().err
    manifest.unlink()
    assert main(command) == 2
    assert "There is no manifest.json" in capsys.readouterr().err
