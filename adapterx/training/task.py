"""Training a task adapter with its head, or a whole model, from labels in few languages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from adapterx.activation import activate
from adapterx.centring import SOURCE
from adapterx.composition import Composition, JsonValue, Stack
from adapterx.model import set_trainable
from adapterx.neutrality import keep_mean, keep_shares, reading
from adapterx.registry import active_on, heads_of, unwrap
from adapterx.store.card import base_of
from adapterx.tasks import task_to_json
from adapterx.tasks.answers import answers
from adapterx.tasks.task import Task
from adapterx.training.batches import Records, sample
from adapterx.training.config import TASK_CONFIG, TrainingConfig
from adapterx.training.loop import Result, fit
from adapterx.training.processes import accelerator_for
from adapterx.training.routing import language_choices, languages_of, route
from adapterx.training.terms.term import Beside, Term
from adapterx.vocabulary import tokenizer_of

__all__ = ["facts_of", "score", "score_tests", "train_task"]

# Records whose mean is the source that other languages are centred to.
_MEAN_OF: Final = 256
_ONE_CLASS: Final = "single_label_classification"


def train_task(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    name: str | None,
    task: Task[Any],
    *,
    train: Records[Any],
    dev: Sequence[Any] = (),
    config: TrainingConfig = TASK_CONFIG,
    compose: Composition | None = None,
    terms: Sequence[Term[Any]] = (),
    accelerator: Accelerator | None = None,
    folder: Path | None = None,
    resume: bool | Path = False,
    progress: bool = True,
) -> Result:
    """Train a task adapter that is on a model, with its head; it is active afterwards.

    Args:
        model: The model; every other parameter is frozen.
        tokenizer: The encoder's tokenizer.
        name: The adapter; None fine-tunes the whole model, in float32, without adapters.
        task: The task, with its labels.
        train: Its records.
        dev: More of them, scored at every evaluation point; empty for none.
        config: The settings of the loop.
        compose: What is active in training, for example the task on its language's adapter; None
            for the task alone.
        terms: What is read and lost beside the labels; see `adapterx.training.terms`.
        accelerator: Accelerate's; None for a new one.
        folder: Where checkpoints and logs go.
        resume: Go on from the newest checkpoint in `folder`, if there is one, or from the
            checkpoint given.
        progress: Show a progress bar on stderr.

    Returns:
        Losses, dev scores and time of the run.

    Raises:
        UnknownNameError: If an adapter is not attached.
        ConfigError, DataError: As `adapterx.training.loop.fit`; if a term does not fit the task.
    """
    base = asdict(base_of(unwrap(model)))
    if name is None:
        activate(model, None)
        # In half precision most updates are smaller than what a weight can show.
        model.float().requires_grad_(True)
    else:
        activate(model, name if compose is None else compose)
        set_trainable(model, name)
    tokenizer = tokenizer_of(model, tokenizer)
    accelerator = accelerator or accelerator_for(config, folder=folder)
    known = language_choices(model, config.languages)
    chosen = languages_of(dev, languages=config.languages, known=known)
    beside = Beside(terms, task, tokenizer, config, processes=accelerator.num_processes)

    def collate(records: Sequence[Any], step: int) -> Mapping[str, Any]:
        batch = task.batch(tokenizer, records, config.max_length)
        return route(batch, records, step, languages=config.languages, known=known)

    def evaluate(current: nn.Module) -> Mapping[str, float]:
        return score(task, current, tokenizer, dev, accelerator=accelerator, languages=chosen)

    with beside.joined(model):
        result = fit(
            model,
            beside.records(train),
            collate=beside.collate(collate),
            items=task.items,
            loss=beside.loss,
            config=config,
            evaluate=evaluate if dev else None,
            metric=task.score,
            accelerator=accelerator,
            folder=folder,
            resume=resume,
            settings={
                "base": base,
                "task": task_to_json(task),
                "labels": list(task.labels),
                "composition": str(compose or name),
                **({"terms": beside.facts} if terms else {}),
            },
            progress=progress,
            title=f"task {name or task.kind}",
        )
    heads = heads_of(model)
    if name is not None and task.problem == _ONE_CLASS and isinstance(train, Sequence):
        counts = Counter(task.labels[task.reference(record)] for record in train)
        shares = {label: counts[label] / len(train) for label in task.labels}
        keep_shares(model, name, shares)
    if name is not None and heads is not None and name in heads.names():
        few = sample(train, _MEAN_OF)
        languages = languages_of(few, languages=config.languages, known=known)
        with reading(model, tokenizer) as mean:
            answers(task, model, tokenizer, few, languages=languages)
        *below, last = Stack(active_on(model) or name).children
        under = Stack(*below) if last == name else Stack(*below, last)
        keep_mean(model, name, SOURCE, mean.value, under=under)
    return result


def score(
    task: Task[Any],
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Any],
    *,
    accelerator: Accelerator | None = None,
    languages: Sequence[str] | None = None,
) -> dict[str, float]:
    """Score what is active on a model; under several processes each answers a share.

    Args:
        task: The task, with its labels.
        model: The model.
        tokenizer: The encoder's tokenizer.
        records: What to answer, with the right answers.
        accelerator: Accelerate's; None for one process.
        languages: What each record chooses, where the setup lets rows choose.

    Returns:
        The scores of the task's metric, on the first process; an empty dict on the others.
    """
    found = answers(task, model, tokenizer, records, accelerator=accelerator, languages=languages)
    if accelerator is not None and not accelerator.is_main_process:
        return {}
    references = [task.reference(record) for record in records]
    scores: dict[str, float] = task.metric().compute(predictions=found, references=references)
    return scores


def score_tests(
    task: Task[Any],
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tests: Mapping[str, Sequence[Any]],
    *,
    config: TrainingConfig,
    accelerator: Accelerator | None = None,
) -> dict[str, float]:
    """Score what was active in training on the test data of each language.

    Returns:
        Scores by ``test NAME TAG``, on the first process; an empty dict on the others.
    """
    known = language_choices(model, config.languages)
    found: dict[str, float] = {}
    for tag, records in tests.items():
        chosen = languages_of(records, languages=config.languages, known=known)
        scores = score(task, model, tokenizer, records, accelerator=accelerator, languages=chosen)
        found |= {f"test {name} {tag}": value for name, value in scores.items()}
    return found


def facts_of(
    task: Task[Any],
    config: TrainingConfig,
    result: Result,
    *,
    compose: str,
    terms: Sequence[Term[Any]] = (),
    tests: Mapping[str, float] | None = None,
) -> dict[str, JsonValue]:
    """Return what a card says of a training: the task, how it was trained, its scores."""
    kept = result.points[result.kept] if result.points else result.steps
    return {
        "task": task_to_json(task),
        "training": {
            "examples": result.examples,
            "steps": result.steps,
            "kept": "average" if config.keep == "average" else f"step {kept}",
            "learning_rate": config.learning_rate,
            "batch_size": config.batch_size,
            "gradient_accumulation": config.gradient_accumulation,
            "epochs": config.epochs,
            "seed": config.seed,
            "seconds": round(result.seconds, 1),
            "composition": compose,
            **({"terms": [term.facts for term in terms]} if terms else {}),
        },
        "scores": {
            **{f"dev {name}": value for name, value in result.final.items()},
            **(tests or {}),
        },
    }
