"""Measuring: columns of a tiny model, their answers, costs and test data."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np
import pytest
import torch

import adapterx
from adapterx import Average, Scale, Stack
from adapterx.errors import ConfigError, DataError, UnknownNameError
from adapterx.evaluation.columns import COLUMNS, attach_task, columns_of
from adapterx.evaluation.manifest import cards_of, manifest_of
from adapterx.evaluation.measured import Measured
from adapterx.evaluation.measuring import measure, parameters_of
from adapterx.evaluation.report.page import page
from adapterx.evaluation.scoring import table_of
from adapterx.evaluation.testsets import find_tests, read_tests, sha256_of
from adapterx.model import set_strength
from adapterx.prediction import logits_of
from adapterx.registry import heads_of
from adapterx.tasks import task_to_json
from adapterx.tasks.answers import answers
from adapterx.tasks.classification import Example, TextClassification
from adapterx.tasks.metric import Array, TaskMetric
from adapterx.tasks.multi_label import LabelledText, MultiLabelClassification

LABELS = ("art", "food", "law")
TASK = TextClassification(labels=LABELS)
TAGS = ("en", "sw", "yo", "fr")


def _texts(count: int, *, seed: int) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    return [
        " ".join(f"w{i}" for i in torch.randint(90, (4,), generator=generator).tolist())
        for _ in range(count)
    ]


@pytest.fixture
def model(build: Callable[..., Any], fill: Callable[..., None], tokenizer: Any) -> Any:
    """A classifier with two tasks and three languages; its answers are spread over the labels."""
    model = build(kind="mean", labels=2)
    for name in ("topics", "topics-1"):
        adapterx.add(model, name, "seq_bn", labels=LABELS, language="en")
    for name in ("en", "sw", "yo"):
        adapterx.add(model, name, "seq_bn", kind="language", language=name)
    fill(model, seed=3)
    set_strength(model, "yo", 0.5)
    heads = heads_of(model)
    assert heads is not None
    for name in ("topics", "topics-1"):
        with adapterx.using(model, name), torch.no_grad():
            logits = logits_of(model, tokenizer, _texts(60, seed=7))
            heads.modules_of(model, name)["classifier"].bias.sub_(logits.mean(0))
    return adapterx.activate(model, "topics")


@pytest.fixture
def tests() -> dict[str, list[Example]]:
    return {
        tag: [
            Example(text, None, LABELS[at * at % 3])
            for at, text in enumerate(_texts(23, seed=seed))
        ]
        for seed, tag in enumerate(TAGS)
    }


# ------------------------------------------------------------------ columns


def test_columns_are_built_from_what_is_on_the_model(model: Any) -> None:
    found = columns_of(model, "topics", TAGS)
    yo = Scale("yo", 0.5)
    mean = Stack(Average("en", "sw", yo, over="outputs"), "topics")
    shuffled = found.pop("shuffled")
    related: Any = found.pop("related")
    assert {tag: set(stack.children[0].children) for tag, stack in related.items()} == {
        "fr": {"en", "sw", yo},
        "sw": {"en", yo},
        "yo": {"en", "sw"},
    }
    assert all(sum(stack.children[0].weights) == pytest.approx(1) for stack in related.values())
    assert found == {
        "task": dict.fromkeys(TAGS, "topics"),
        "own": {
            "en": Stack("en", "topics"),
            "sw": Stack("sw", "topics"),
            "yo": Stack(yo, "topics"),
        },
        "source": dict.fromkeys(TAGS, Stack("en", "topics")),
        "averaged": dict.fromkeys(TAGS, mean),
        "nearest": {
            "fr": Stack("en", "topics"),
            "sw": Stack(yo, "topics"),
            "yo": Stack("sw", "topics"),
        },
    }
    assert shuffled.keys() == {"en", "sw", "yo"}
    assert list(columns_of(model, "topics", TAGS, columns=("own", "task"))) == ["own", "task"]


@pytest.mark.parametrize("seed", range(8))
def test_a_shuffle_gives_every_language_the_adapter_of_another(model: Any, seed: int) -> None:
    own = columns_of(model, "topics", TAGS, seed=seed)["own"]
    shuffled = columns_of(model, "topics", TAGS, seed=seed)["shuffled"]
    assert {str(one) for one in shuffled.values()} == {str(one) for one in own.values()}
    assert all(shuffled[tag] != own[tag] for tag in own)
    assert shuffled == columns_of(model, "topics", TAGS, seed=seed)["shuffled"]


def test_shuffles_differ_by_seed(model: Any) -> None:
    drawn = [columns_of(model, "topics", TAGS, seed=seed)["shuffled"] for seed in range(8)]
    assert (
        len({str(sorted(map(str, one.items()))) for one in drawn}) == 2
    )  # three languages have two derangements


def test_a_column_that_no_language_has_is_left_out(model: Any) -> None:
    adapterx.detach(model, "en")
    adapterx.detach(model, "yo")
    assert list(columns_of(model, "topics", TAGS)) == ["task", "own", "averaged", "nearest"]
    adapterx.detach(model, "sw")
    assert list(columns_of(model, "topics", TAGS)) == ["task"]


def test_unknown_columns_and_tasks_are_errors(model: Any) -> None:
    with pytest.raises(ConfigError, match=r"no column 'shufled'.*Did you mean 'shuffled'\?"):
        columns_of(model, "topics", TAGS, columns=("shufled",))
    with pytest.raises(UnknownNameError, match="'topisc'"):
        columns_of(model, "topisc", TAGS)


def test_a_task_comes_with_every_language_adapter_of_the_store(
    model: Any, build: Callable[..., Any], tmp_path: Path
) -> None:
    facts = {"task": task_to_json(TextClassification(text_column="body"))}
    for name in ("topics", "sw", "yo"):
        adapterx.save(model, name, tmp_path / name, card=facts if name == "topics" else None)
    fresh = build(kind="mean", labels=2)
    adapter, task = attach_task(fresh, "topics", TAGS, store=tmp_path)
    assert (adapter.name, adapter.language) == ("topics", "en")
    assert task == TextClassification(labels=LABELS, text_column="body")
    summary = adapterx.summary(fresh)
    assert {row.name for row in summary.adapters} == {"topics", "sw", "yo"}
    assert summary.active == "topics"
    assert columns_of(fresh, "topics", TAGS, columns=("own",)) == {
        "own": {"sw": Stack("sw", "topics"), "yo": Stack(Scale("yo", 0.5), "topics")}
    }


# ------------------------------------------------------------------ answers


def test_every_cell_holds_what_its_composition_answers(
    model: Any, tokenizer: Any, tests: dict[str, list[Example]]
) -> None:
    for lang in ("en", "sw"):
        texts = [f"w{number} w7" for number in range(20)]
        adapterx.centre(model, tokenizer, texts, lang=lang, task="topics")
    columns = columns_of(model, "topics", TAGS)
    measured = measure(
        model, tokenizer, TASK, tests, columns, name="topics", source="en", batch_size=5
    )
    assert set(measured.columns) == set(COLUMNS)
    assert len(measured.answered) == 4 + 3 + 4 + 4 + 3 + 3 + 2 + 3
    different = set()
    for one in measured.answered:
        composition = columns[one.column][one.language]
        assert one.composition == str(composition)
        with adapterx.using(model, composition):
            found = TASK.predict(model, tokenizer, tests[one.language])
        assert list(one.predictions) == found
        different.add(str(found))
    assert len(different) > 6
    assert measured.tests["sw"].references == tuple(at * at % 3 for at in range(23))
    assert measured.tests["sw"].texts[0] == tests["sw"][0].text
    assert adapterx.summary(model).active == "topics"
    table = table_of(measured)
    assert table.rows[0].cells["shuffled"] is not None
    assert table.rows[1].cells["own"] is None  # French


def test_costs_count_what_acts_and_its_head(
    model: Any, tokenizer: Any, tests: dict[str, list[Example]]
) -> None:
    columns = columns_of(model, "topics", ["sw"])
    measured = measure(model, tokenizer, TASK, {"sw": tests["sw"]}, columns, name="topics")
    rows = {row.name: row for row in adapterx.summary(model).adapters}
    count = {name: row.parameters + row.head_parameters for name, row in rows.items()}
    cost = {one.column: one.cost for one in measured.answered}
    assert cost["task"].parameters == count["topics"]
    assert cost["own"].parameters == count["topics"] + count["sw"]
    assert cost["averaged"].parameters == sum(count[one] for one in ("topics", "sw", "en", "yo"))
    assert cost["own"].size_bytes == 4 * cost["own"].parameters
    assert all(one.seconds > 0 for one in cost.values())
    assert all(one.memory_bytes and one.memory_bytes > 2**20 for one in cost.values())
    assert measured.encoder_parameters == adapterx.summary(model).base_parameters


def test_a_model_without_adapters_was_trained_whole(
    build: Callable[..., Any], tokenizer: Any, tests: dict[str, list[Example]]
) -> None:
    model = build(kind="mean", labels=3)
    columns = {"full fine-tuning": dict.fromkeys(tests)}
    measured = measure(model, tokenizer, TASK, tests, columns, name="topics")
    (cost, *_) = (one.cost for one in measured.answered)
    assert cost.parameters == sum(one.numel() for one in model.parameters())
    assert measured.answered[0].composition is None
    found = TASK.predict(model, tokenizer, tests["en"])
    assert list(measured.answered[0].predictions) == found


def test_training_seconds_come_from_the_cards(
    model: Any, build: Callable[..., Any], tokenizer: Any, tests: Any, tmp_path: Path
) -> None:
    for name, seconds in (("topics", 60.5), ("sw", 30)):
        card = {"training": {"seconds": seconds}}
        adapterx.save(model, name, tmp_path / name, card=card)
    fresh = build(kind="mean", labels=2)
    attach_task(fresh, "topics", ["sw"], store=tmp_path)
    columns = columns_of(fresh, "topics", ["sw"])
    measured = measure(fresh, tokenizer, TASK, {"sw": tests["sw"]}, columns, name="topics")
    cost = {one.column: one.cost.training_seconds for one in measured.answered}
    assert cost == {"task": 60.5, "own": 90.5, "averaged": 90.5}


def test_an_unknown_adapter_in_a_composition_is_an_error(model: Any, tokenizer: Any) -> None:
    tests = {"sw": [Example("w1", None, "art")]}
    with pytest.raises(UnknownNameError, match="'ha'"):
        measure(model, tokenizer, TASK, tests, {"a": {"sw": Stack("ha", "topics")}}, name="topics")
    assert adapterx.summary(model).active == "topics"


def test_answers_of_one_process_are_those_of_the_task(model: Any, tokenizer: Any) -> None:
    records = [Example(text, None, "art") for text in _texts(7, seed=1)]
    expected = TASK.predict(model, tokenizer, records)
    assert answers(TASK, model, tokenizer, records, batch_size=3) == expected
    assert answers(TASK, model, tokenizer, []) == []


def test_a_text_without_any_label_is_an_answer_like_others(model: Any, tokenizer: Any) -> None:
    task = MultiLabelClassification(labels=LABELS)
    heads = heads_of(model)
    assert heads is not None
    with torch.no_grad():
        heads.modules_of(model, "topics")["classifier"].bias.fill_(-99)
    tests = {"sw": [LabelledText("w1", labels=("art",)), LabelledText("w2")]}
    columns = {"task": {"sw": "topics"}}
    measured = measure(model, tokenizer, task, tests, columns, name="topics")
    assert [one.predictions for one in measured.answered] == [([], [])]
    assert table_of(measured).rows[0].cells["task"].scores["subset_accuracy"].value == 0.5


class Nearest(TaskMetric):
    """Whether a vector points where the right one does."""

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
        right = np.sign(np.array(predictions)[:, 0]) == np.sign(references)
        return np.stack([right, np.ones(len(right))], axis=1)

    def scores(self, totals: Array) -> dict[str, Array]:
        return {"accuracy": totals[..., 0] / totals[..., 1]}

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo("", "", features=datasets.Features({}))


class Vectors(TextClassification):
    """A task that answers with vectors, as retrieval does."""

    def predict(self, *given: Any, **more: Any) -> Any:
        return [[float(one) - 0.5, 1.25] for one in super().predict(*given, **more)]

    def metric(self) -> Any:
        return Nearest()


def test_vectors_are_kept_as_what_they_add_to_the_score(
    model: Any, tokenizer: Any, tests: dict[str, list[Example]], tmp_path: Path
) -> None:
    task = Vectors(labels=LABELS)
    columns = {"task": dict.fromkeys(tests, "topics")}
    measured = measure(model, tokenizer, task, tests, columns, name="topics", source="en")
    assert {one.predictions for one in measured.answered} == {()}
    for one in measured.answered:
        found = task.predict(model, tokenizer, tests[one.language])
        references = measured.tests[one.language].references
        expected = Nearest().statistics(found, references)
        assert np.array_equal(one.sums(task, measured.tests[one.language]), expected)
    table = table_of(measured)
    measured.save(tmp_path / "answers.json")
    assert Measured.load(tmp_path / "answers.json").answered == measured.answered
    assert "Worst mistakes" in page(measured, table)


# ------------------------------------------------------------------ test data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [{"id": at, "text": f"w{at}", "label": LABELS[at % 3]} for at in range(6)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    for name in ("sw.test.jsonl", "sw.train.jsonl", "fr.jsonl", "notes.txt", "test/yo.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_folder_is_read_by_the_names_of_its_files(folder: Path) -> None:
    assert find_tests([str(folder)]) == {
        "fr": folder / "fr.jsonl",
        "sw": folder / "sw.test.jsonl",
        "yo": folder / "test" / "yo.jsonl",
    }
    assert list(find_tests([str(folder)], ["Yoruba", "sw"])) == ["yo", "sw"]
    more = find_tests([str(folder), f"en={folder / 'fr.jsonl'}"])
    assert more["en"] == folder / "fr.jsonl"


def test_test_data_that_are_not_there_are_errors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No test data of fo in .*\(there: fr, sw, yo\)"):
        find_tests([str(folder)], ["fo"])
    with pytest.raises(ConfigError, match="Test data of sw given twice"):
        find_tests([str(folder), "sw=other.jsonl"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no data\. Name its files by language"):
        find_tests([str(tmp_path / "empty")])
    (tmp_path / "empty" / "sw.train.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"empty holds no test data of a language"):
        find_tests([str(tmp_path / "empty")])
    (folder / "sw.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"sw given twice: .*sw\.jsonl and .*sw\.test\.jsonl"):
        find_tests([str(folder)])
    with pytest.raises(ConfigError, match="Write LANG=FILE"):
        find_tests(["gone"])


def test_records_are_joined_by_their_ids_where_all_have_one(folder: Path) -> None:
    (folder / "en.jsonl").write_text('{"text": "w1", "label": "art"}\n')
    twice = '{"id": 1, "text": "w1", "label": "art"}\n' * 2
    (folder / "fo.jsonl").write_text(twice)
    tests = read_tests(TASK, find_tests([str(folder)]))
    assert tests["sw"].ids == tests["yo"].ids == [str(at) for at in range(6)]
    assert (tests["en"].ids, tests["fo"].ids) == ((), ())
    assert len(tests["fo"].records) == 2


def test_labels_of_the_test_data_are_read_by_the_names_of_the_task(folder: Path) -> None:
    lines = [{"text": f"w{at}", "label": label} for at, label in enumerate(("kunst", "7", "law"))]
    (folder / "de.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = find_tests([str(folder)], ["de"])
    with pytest.raises(DataError, match="label 'kunst' is not one of art, food, law"):
        read_tests(TASK, files)
    read = read_tests(TASK, files, label_map={"kunst": "art", "7": None})
    assert [(one.text, one.label) for one in read["de"].records] == [("w0", "art"), ("w2", "law")]


# ------------------------------------------------------------------ the manifest


def test_a_manifest_names_data_adapters_versions_and_command(
    model: Any, tokenizer: Any, folder: Path
) -> None:
    files = find_tests([str(folder)], ["sw", "fr"])
    records = {tag: test.records for tag, test in read_tests(TASK, files).items()}
    columns = columns_of(model, "topics", records)
    measured = measure(model, tokenizer, TASK, records, columns, name="topics", run="topics")
    command = ["adapterx", "evaluate", "--task", "topics"]
    manifest: Any = manifest_of(
        measured, model, files=files, command=command, seed=3, resamples=2000, seconds=1.234
    )
    assert json.loads(json.dumps(manifest, allow_nan=False)) == manifest
    assert manifest["command"] == command
    assert (manifest["seed"], manifest["seconds"], manifest["resamples"]) == (3, 1.2, 2000)
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["tests"]["sw"]["file_sha256"] == sha256_of(files["sw"])
    assert manifest["tests"]["sw"]["examples"] == 6
    assert manifest["adapters"]["yo"]["strength"] == 0.5
    assert "fingerprint" not in json.dumps(manifest["adapters"])


def test_a_card_in_a_manifest_changes_with_the_weights(model: Any) -> None:
    before: Any = cards_of(model)
    with torch.no_grad():
        parameters_of(model, "sw")[0].add_(1)
    after: Any = cards_of(model)
    changed = [name for name in before if before[name] != after[name]]
    assert changed == ["sw"]
