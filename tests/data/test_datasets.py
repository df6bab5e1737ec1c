"""Datasets by id: real folders that `datasets` loads, and a Hub that does not answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from adapterx.data import find_sources, read_rows
from adapterx.errors import DataError
from adapterx.tasks import read_records
from adapterx.tasks.classification import Example, TextClassification


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a dataset with named classes, as on the Hub: a file for each split."""
    folder = tmp_path_factory.mktemp("topics")
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["law", "sport"]),
            "tokens": [datasets.Value("string")],
            "tags": [datasets.ClassLabel(names=["O", "B-PER"])],
            "language": datasets.Value("string"),
        }
    )
    rows = {
        "text": ["Korti iliamua.", "Timu ilishinda."],
        "label": [0, 1],
        "tokens": [["Korti", "Amina"], ["Timu"]],
        "tags": [[0, 1], [0]],
        "language": ["swa", "Yoruba"],
    }
    datasets.disable_progress_bars()
    for split, chosen in {"train": [0, 1], "validation": [1], "test": [0]}.items():
        part = {name: [values[at] for at in chosen] for name, values in rows.items()}
        datasets.Dataset.from_dict(part, features=features).to_parquet(folder / f"{split}.parquet")
    blind = {name: values[:1] for name, values in rows.items()} | {"label": [-1]}
    datasets.Dataset.from_dict(blind, features=features).to_parquet(folder / "blind.parquet")
    return folder


def test_a_dataset_is_read_with_the_names_of_its_classes(parquet: Path) -> None:
    rows = list(read_rows(f"hf:{parquet}", split="train"))
    assert [row.fields["label"] for row in rows] == ["law", "sport"]
    assert [row.fields["tags"] for row in rows] == [["O", "B-PER"], ["O"]]
    assert [row.language for row in rows] == ["sw", "yo"]
    assert rows[1].where == f"hf:{parquet} [train], row 2"
    records = read_records(
        TextClassification(labels=("law", "sport")), f"hf:{parquet}", split="dev"
    )
    assert records == [Example("Timu ilishinda.", None, "sport", "yo")]


def test_a_dataset_is_read_again_at_every_pass(parquet: Path) -> None:
    rows = read_rows(f"hf:{parquet}", split="train")
    assert list(rows) == list(rows)
    assert next(iter(rows)) == next(iter(rows))


def test_a_dataset_stands_for_its_splits(parquet: Path) -> None:
    assert {one.split for one in find_sources(f"hf:{parquet}")} == {"train", "dev", "test"}
    with pytest.raises(DataError, match=r"no split 'tets' \(there: train, dev, test\)\. Did you"):
        read_rows(f"hf:{parquet}", split="tets")
    with pytest.raises(DataError, match="several splits and none was named"):
        read_rows(f"hf:{parquet}")


def test_a_label_that_is_kept_secret_is_no_label(tmp_path: Path, parquet: Path) -> None:
    (tmp_path / "test.parquet").write_bytes((parquet / "blind.parquet").read_bytes())
    (row,) = read_rows(f"hf:{tmp_path}")
    assert row.fields["label"] is None
    with pytest.raises(DataError, match="row 1: no text in field 'label'"):
        read_records(TextClassification(), f"hf:{tmp_path}")


def test_a_folder_of_lines_is_a_dataset_too(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": 3}\n')
    (row,) = read_rows(f"hf:{tmp_path}", language="sw")
    assert (row.fields, row.language) == ({"text": "a", "label": 3}, "sw")


BROKEN = {
    "no folder": ("hf:/no/such/folder", None, "Couldn't find any data file"),
    "other configuration": ("hf:{folder}:swa", "train", "BuilderConfig 'swa' not found"),
    "broken line": ("hf:{folder}", "train", ""),
}


@pytest.mark.parametrize(("name", "split", "part"), BROKEN.values(), ids=BROKEN)
def test_what_is_wrong_with_a_dataset_is_one_line(
    tmp_path: Path, name: str, split: str | None, part: str
) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n{"text": \n')
    name = name.format(folder=tmp_path)
    with pytest.raises(DataError) as caught:
        list(read_rows(name, split=split))
    text = str(caught.value)
    assert text.startswith(name)
    assert part in text
    assert "\n" not in text


def test_a_hub_that_does_not_answer_is_one_line_and_exit_code_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "adapterx", "data", "check", "hf:user/name", "--json"],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "HF_HUB_OFFLINE": "1",
        },
    )
    assert done.returncode == 2, done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["type"] == "HubError"
    assert "Cannot read 'hf:user/name'" in error["message"]
    assert "hf:/path" in error["message"]
    assert len(done.stderr.splitlines()) == 1
