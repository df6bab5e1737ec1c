"""Metrics over several processes, the way of the library `evaluate`: each adds its share."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
from adapterx.tasks.classification import ClassificationMetric
from adapterx.tasks.tagging import EntityMetric

rank, cache = int(sys.argv[1]), sys.argv[2]
shared = {"num_process": 2, "process_id": rank, "experiment_id": "two", "cache_dir": cache}
METRICS = {
    "classes": (
        lambda **settings: ClassificationMetric(3, **settings),
        [0, 1, 2, 2, 0, 1, 1],
        [0, 1, 1, 2, 0, 2, 1],
    ),
    "entities": (
        lambda **settings: EntityMetric(("B-PER", "I-PER", "O"), **settings),
        [["B-PER", "I-PER"], ["O"], ["O", "B-PER"], ["I-PER"], ["O", "O", "B-PER"]],
        [["B-PER", "I-PER"], ["B-PER"], ["O", "B-PER"], ["O"], ["O", "B-PER", "I-PER"]],
    ),
}
make, predictions, references = METRICS[sys.argv[3]]
metric = make(**shared)
metric.add_batch(predictions=predictions[rank::2], references=references[rank::2])
scores = metric.compute()
alone = make(cache_dir=cache).compute(predictions=predictions, references=references)
print(json.dumps([scores, alone]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classes", "entities"])
def test_two_processes_add_up_to_the_scores_of_one(tmp_path: Path, name: str) -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), str(tmp_path), name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    answers = []
    for run in runs:
        out, err = run.communicate(timeout=300)
        assert run.returncode == 0, err
        answers.append(json.loads(out.splitlines()[-1]))
    (scores, alone), (other, _) = answers
    assert scores == pytest.approx(alone)
    assert other is None  # the first process has the scores, as in evaluate
