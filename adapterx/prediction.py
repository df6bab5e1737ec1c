"""Predict: texts in, labels with scores out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias, TypedDict

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adapterx.activation import activate
from adapterx.anatomy import anatomy_of, known_families
from adapterx.attachment import Fallback, adapted_languages, attach, means_of
from adapterx.centring import SOURCE
from adapterx.composition import Axis, names
from adapterx.composition import choices as choices_of
from adapterx.errors import BaseModelError, CompositionError, ConfigError, ShapeError
from adapterx.identification import told_languages
from adapterx.registry import active_on, heads_of, registry_of, unwrap
from adapterx.vocabulary import encoded, tokenizers_of

__all__ = [
    "Prediction",
    "Text",
    "active_task",
    "identified",
    "logits_of",
    "max_length_of",
    "predict",
]

# One text, or the two parts of a pair.
Text: TypeAlias = str | tuple[str, str]


class Prediction(TypedDict, total=False):
    """The answer for one text.

    Attributes:
        label: The best label; for several labels a text, those above one half, with commas.
        score: Its probability; for regression the value itself.
        scores: Probability of every label.
    """

    label: str
    score: float
    scores: dict[str, float]


def predict(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    *,
    lang: str | Sequence[str] | None = None,
    task: str | Sequence[str] | None = None,
    fallback: Fallback = "error",
    batch_size: int = 32,
    progress: bool = False,
) -> list[Prediction]:
    """Answer a classification task for each text.

    Args:
        model: A sequence-classification model, with adapters or without.
        tokenizer: The encoder's tokenizer.
        texts: Texts, or pairs of texts.
        lang: Language for this call, or one for each text: a choice of what is active, or to be
            attached under the active task; None for what is active; ``"auto"`` for what each
            text is thought to be in (`adapterx.identification`), the task alone where that is
            not sure.
        task: Task to attach for this call, or one for each text; None for what is active.
        fallback: What to do where a language has no adapter, as `adapterx.attach`.
        batch_size: Rows per forward pass, at least 1; texts of like length share a batch.
        progress: Show a progress bar on stderr.

    Returns:
        One dict per text, in order: ``label``, ``score`` (0 to 1) and ``scores`` by label; for
        regression ``score`` alone.

    Raises:
        ConfigError: If `texts` is one string, or `batch_size` is below 1.
        ShapeError: If there are not as many languages or tasks as texts.
        CompositionError: If what is active answers a text more than once, or several tasks are
            active and none is named.
        BaseModelError: If the model gives no class logits.
        UnknownNameError: As `adapterx.attach`.
    """
    if isinstance(texts, str):
        raise ConfigError("texts is one string in predict. Give a list: predict(…, [text]).")
    if lang == "auto":
        lang = identified(model, texts, task) if texts else None
    rows: dict[Axis, Sequence[str]] = {}
    choices: dict[Axis, str | Sequence[str] | None] = {"lang": lang, "task": task}
    for axis, choice in choices.items():
        if choice is not None and not isinstance(choice, str):
            if len(choice) != len(texts):
                raise ShapeError(
                    f"{axis} has {len(choice)} entries for {len(texts)} texts in predict. Pass "
                    f"one {axis} per text, or one for all."
                )
            rows[axis] = choice
    if not texts:
        return []
    with _attached(model, lang, task, fallback) as open_axes:
        for axis, choice in choices.items():
            if axis in open_axes and isinstance(choice, str):
                rows[axis] = [choice] * len(texts)
            elif axis in open_axes and axis not in rows:
                raise CompositionError(
                    f"Each text chooses its {axis} in what is active, {active_on(model)}. "
                    f"Pass it: predict(…, {axis}=[...]), one per text, or one for all."
                )
        logits = logits_of(
            model, tokenizer, texts, rows=rows, batch_size=batch_size, progress=progress
        )
        config, heads = unwrap(model).config, heads_of(model)
        if "task" not in rows or heads is None:
            return [_answer(row, config.id2label, config.problem_type) for row in logits]
        facts = [heads.labels[name] for name in rows["task"]]
        return [
            _answer(row[: len(own.names)], dict(enumerate(own.names)), own.problem)
            for row, own in zip(logits, facts, strict=True)
        ]


def logits_of(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    *,
    rows: Mapping[Axis, Sequence[str]] | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> Tensor:
    """Return the logits of each text under what is active.

    Args:
        model: A sequence-classification model.
        tokenizer: The encoder's tokenizer.
        texts: Texts, or pairs of texts.
        rows: What each text chooses, where the setup lets rows choose.
        batch_size: Rows per forward pass, at least 1.
        progress: Show a progress bar on stderr.

    Returns:
        ``(texts, labels)``, float32, on the CPU.

    Raises:
        ConfigError: If `batch_size` is below 1.
        BaseModelError: If the model gives no class logits.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size} in predict. Set it to 1 or more.")
    inner = unwrap(model)
    device = next(inner.parameters()).device
    tokenizers = tokenizers_of(model, tokenizer, len(texts), rows)
    order = sorted(range(len(texts)), key=lambda index: _length(texts[index]), reverse=True)
    answers: list[Tensor] = [torch.empty(0)] * len(texts)
    training = inner.training
    inner.eval()
    try:
        with torch.inference_mode():
            for chosen in _batches(order, batch_size, progress):
                read = encoded(
                    [texts[index] for index in chosen],
                    [tokenizers[index] for index in chosen],
                    truncation=True,
                    max_length=max_length_of(tokenizer, inner),
                )
                batch = tokenizer.pad(read, return_tensors="pt").to(device)
                for axis, choice in (rows or {}).items():
                    batch[axis] = [choice[index] for index in chosen]
                logits = getattr(model(**batch), "logits", None)
                if not isinstance(logits, Tensor) or logits.dim() != 2:
                    raise BaseModelError(
                        f"{type(inner).__name__} gives no class logits. Load the encoder with a "
                        "sequence-classification class."
                    )
                if len(logits) != len(chosen):
                    raise CompositionError(
                        f"What is active, {active_on(model)}, answers a text "
                        f"{len(logits) // len(chosen)} times. Activate one output at a time."
                    )
                for index, row in zip(chosen, logits.float().cpu(), strict=True):
                    answers[index] = row
    finally:
        inner.train(training)
    return torch.stack(answers) if answers else torch.empty(0, inner.config.num_labels)


def identified(
    model: nn.Module,
    texts: Sequence[Text],
    task: str | Sequence[str] | None = None,
    *,
    store: str | Path | None = None,
) -> list[str]:
    """Return the language of each text, by the tags of what can be attached.

    Args:
        model: The model, with the tasks on it.
        texts: Texts, or pairs of texts.
        task: The task that will answer, or several; None for the active one.
        store: The store's folder; None for the default.

    Returns:
        A tag a text; ``"und"`` where it is not sure.

    Raises:
        ConfigError: If the library that tells languages is not installed.
    """
    registry = registry_of(model)
    tasks = _each(task) or _each(active_task(model))
    heads = [registry.adapters[name] for name in tasks if registry and name in registry.adapters]
    known = adapted_languages(model, store=store).union(*map(means_of, heads))
    known |= {head.language for head in heads if head.language is not None}
    plain = [text if isinstance(text, str) else " ".join(text) for text in texts]
    return told_languages(plain, known - {SOURCE})


@contextmanager
def _attached(
    model: nn.Module,
    lang: str | Sequence[str] | None,
    task: str | Sequence[str] | None,
    fallback: Fallback,
) -> Iterator[Collection[Axis]]:
    """Attach what is asked for; yield the axes by which rows choose then."""
    before = active_on(model)
    asked: dict[Axis, list[str]] = {"lang": _each(lang), "task": _each(task)}
    known = choices_of(before) if before is not None else {}
    if all(set(wanted) <= set(known.get(axis, ())) for axis, wanted in asked.items()):
        yield known  # nothing asked for, or nothing that rows cannot choose already
        return
    if task is None:
        task = active_task(model)
    attach(
        model,
        lang=lang if isinstance(lang, str | None) else asked["lang"],
        task=task if isinstance(task, str | None) else asked["task"],
        fallback=fallback,
    )
    try:
        now = active_on(model)
        yield choices_of(now) if now is not None else {}
    finally:
        activate(model, before)


def active_task(model: nn.Module) -> str | None:
    """Return the task adapter in what is active, None if there is none.

    Raises:
        CompositionError: If there are several.
    """
    active, registry = active_on(model), registry_of(model)
    if active is None or registry is None:
        return None
    tasks = [name for name in names(active) if registry.adapters[name].kind == "task"]
    if len(tasks) > 1:
        raise CompositionError(
            f"Several tasks are active, {', '.join(tasks)}. Say which: task=...."
        )
    return tasks[0] if tasks else None


def _each(choice: str | Sequence[str] | None) -> list[str]:
    """Return the different ones of a choice."""
    return list(dict.fromkeys([choice] if isinstance(choice, str) else choice or []))


def _length(text: Text) -> int:
    return len(text) if isinstance(text, str) else sum(map(len, text))


def max_length_of(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> int:
    """Return how many tokens a text may have; a tokenizer without a limit says 10^30."""
    config = model.config
    known = config.model_type in known_families()
    unused = anatomy_of(config.model_type).unused_positions if known else 0
    return int(
        min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", 512) - unused)
    )


def _batches(order: Sequence[int], size: int, progress: bool) -> Iterator[Sequence[int]]:
    starts = range(0, len(order), size)
    if progress:
        from tqdm.auto import tqdm

        starts = tqdm(starts, desc="predict", unit="batch", disable=None)
    for start in starts:
        yield order[start : start + size]


def _answer(logits: Tensor, labels: dict[int, str], problem: str | None) -> Prediction:
    if problem == "regression" or (problem is None and len(logits) == 1):
        return {"score": float(logits[0])}
    several = problem == "multi_label_classification"
    scores = (logits.sigmoid() if several else logits.softmax(-1)).tolist()
    named = {labels[index]: score for index, score in enumerate(scores)}
    best = max(named, key=named.__getitem__)
    label = ", ".join(key for key, score in named.items() if score > 0.5) if several else best
    return {"label": label, "score": named[best], "scores": named}
