"""Centre: measure the mean of a language at the input of a task's head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from adapterx.activation import using
from adapterx.attachment import attach
from adapterx.centring import SOURCE
from adapterx.composition import Stack
from adapterx.errors import BaseModelError, CompositionError, ConfigError, DataError
from adapterx.identification import check_language
from adapterx.languages import standard_tag
from adapterx.prediction import active_task, logits_of
from adapterx.registry import Registry, active_on, heads_of, registry_of, unwrap
from adapterx.tasks import task_from_json

__all__ = ["MINIMUM_TEXTS", "centre", "keep_mean", "keep_shares", "prior_bias", "reading"]

# Thirty give most of the gain; below this a mean says more of the texts than of the language.
MINIMUM_TEXTS: Final = 16
_SHARES: Final = "label_shares"
# Of the search for the bias, which halves its error in each at least.
_ROUNDS: Final = 200
_Model = TypeVar("_Model", bound=nn.Module)


class Mean:
    """The running mean of the vectors that a head reads, ``(hidden,)`` float64."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.count = 0.0

    def add(self, vectors: Tensor) -> None:
        """Take in vectors, ``(n, hidden)``."""
        total = vectors.double().sum(0).cpu()
        self.total = total if self.total is None else self.total + total
        self.count += len(vectors)

    @property
    def value(self) -> Tensor:
        """The mean of what was taken in, float32."""
        assert self.total is not None and self.count, "the head was not called"
        return (self.total / self.count).float()


@contextmanager
def reading(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Iterator[Mean]:
    """Take the mean of what the standing head reads in the passes made meanwhile.

    A head that answers a row once reads one vector of it: the pooled one it is given, or that of
    the first token. One that answers every token reads them all, but padding and special ones.

    Args:
        model: The model; call it with ``input_ids`` and ``attention_mask`` by name.
        tokenizer: The encoder's; its special tokens but the unknown one stand for no text.

    Raises:
        BaseModelError: If the model has no head.
    """
    inner = unwrap(model)
    heads = heads_of(inner)
    reader = None if heads is None else heads.reader(inner)
    if reader is None:
        raise BaseModelError(
            f"{type(inner).__name__} has no head, so nothing reads its states. Load the encoder "
            "with a class that has one, e.g. AutoModelForSequenceClassification."
        )
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    mean = Mean()
    call: dict[str, Any] = {}

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call.update(kwargs)

    def take(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Tensor) -> None:
        read: Tensor = args[0] if args else next(iter(kwargs.values()))
        if read.dim() == 2:
            mean.add(read)
        elif answer.dim() == 2:
            mean.add(read[:, 0])
        else:
            ids = call["input_ids"]
            text = call["attention_mask"].bool()
            text &= ~torch.isin(ids, torch.tensor(sorted(special), device=ids.device))
            mean.add(read[text])

    handles = [
        inner.register_forward_pre_hook(note, with_kwargs=True),
        reader.register_forward_hook(take, with_kwargs=True),
    ]
    try:
        yield mean
    finally:
        for handle in handles:
            handle.remove()


def centre(
    model: _Model,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str | Sequence[str]],
    *,
    lang: str,
    task: str | None = None,
    match_prior: bool = False,
    batch_size: int = 32,
) -> _Model:
    """Measure the mean of a language at the input of a task's head, and keep it with the task.

    The texts run once through the task in this language, with its adapter below if there is one;
    no label is read. From then on ``attach(model, lang=..., task=...)`` has the head read each
    row of this language around the mean of what it was trained on, and the mean is saved with
    the task. What is active now stays as it is.

    Libovický et al., 2020, https://arxiv.org/abs/2004.05160.

    Args:
        model: A model with the task's adapter and head.
        tokenizer: The encoder's tokenizer.
        texts: Some texts of the language, or pairs or more of them as the task reads, of the kind
            that will be asked; some hundred, at least 16.
        lang: Their language: a tag, an English name, or its adapter's name. The language of the
            task's labels gives the mean that the others are moved to; training measures it.
        task: The task; None for the one that is active.
        match_prior: Whether to move the mean further, to where the mean of the answers is as the
            training labels were spread (Saerens et al., 2002,
            https://doi.org/10.1162/089976602753284446, by a bias on the logits). Only right if the
            labels of `texts` are spread like that too. For classes read by a linear head.
        batch_size: Texts per forward pass, at least 1.

    Returns:
        `model`.

    Raises:
        DataError: If there are too few texts.
        ConfigError: If `texts` is one string, no task is active and none is named, the task
            reads pairs and these are none, or the prior cannot be matched.
        CompositionError: If the mean of what the task was trained on is not known.
        BaseModelError: If the model has no head.
        UnknownNameError: As `adapterx.attach`.
    """
    if isinstance(texts, str):
        raise ConfigError("texts is one string in centre. Give a list of texts.")
    if len(texts) < MINIMUM_TEXTS:
        raise DataError(
            f"{len(texts)} texts to centre {lang!r} with. Give at least {MINIMUM_TEXTS}; some "
            "hundred of the kind that will be asked are best."
        )
    task = active_task(model) if task is None else task
    if task is None:
        raise ConfigError("No task is active and none is named in centre. Pass task=...")
    with using(model):
        attach(model, lang=lang, task=task, fallback="none", centring="none")
        name, registry = active_task(model), registry_of(model)
        assert name is not None
        assert registry is not None
        *below, _ = Stack(active_on(model) or Stack()).children
        heads = heads_of(model)
        labels = heads.labels[name].names if heads is not None and name in heads.labels else ()
        kind = task_from_json(registry.adapters[name].facts.get("task", {}), labels)
        rows = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
        records = [kind.ask(*row) for row in rows]
        tag = _tag(registry, lang)
        check_language([" ".join(row) for row in rows], tag, "What centre was given")
        with reading(model, tokenizer) as mean:
            kind.predict(model, tokenizer, records, batch_size=batch_size)
        value = mean.value
        if match_prior and tag != registry.adapters[name].language:
            value = value - _prior_offset(model, tokenizer, name, rows, value, batch_size)
    keep_mean(model, name, tag, value, under=Stack(*below))
    return model


def keep_shares(model: nn.Module, task: str, shares: Mapping[str, float]) -> None:
    """Keep with a task how its training labels were spread, shares by label."""
    registry = registry_of(model)
    assert registry is not None
    adapter = registry.require(task)
    registry.adapters[task] = replace(adapter, facts={**adapter.facts, _SHARES: dict(shares)})


def _prior_offset(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    rows: Sequence[tuple[str, ...]],
    mean: Tensor,
    batch_size: int,
) -> Tensor:
    """Return what to add to vectors, ``(hidden,)``, for the mean answer to be the prior."""
    registry, heads = registry_of(model), heads_of(model)
    assert registry is not None and heads is not None
    reader = heads.reader(unwrap(model))
    labels = heads.labels[task].names
    known = registry.adapters[task].facts.get(_SHARES)
    means = heads.offsets.means(task)
    if not isinstance(reader, nn.Linear) or reader.out_features != len(labels):
        raise ConfigError(
            f"The head of {task!r} is not one linear layer that reads a text once, so the prior "
            "cannot be matched at its input. Leave match_prior out."
        )
    if not isinstance(known, Mapping) or {*known} != {*labels} or SOURCE not in means:
        raise ConfigError(
            f"{task!r} does not say how its training labels were spread (tasks of one class a "
            "text do, since this version). Train it again, or leave match_prior out."
        )
    prior = torch.tensor([known[label] for label in labels]).float().clamp(min=1e-4)
    weight = reader.weight.detach().float().cpu()
    texts: list[Any] = [row[0] if len(row) == 1 else row for row in rows]
    logits = logits_of(model, tokenizer, texts, batch_size=batch_size)
    logits = logits + weight @ (means[SOURCE].cpu() - mean)
    # The smallest move at the head's input that adds this to the logits.
    return torch.linalg.pinv(weight) @ prior_bias(logits, prior)


def prior_bias(logits: Tensor, prior: Tensor) -> Tensor:
    """Return what to add to logits for the mean of the probabilities to be a prior.

    Args:
        logits: ``(texts, labels)``, float32.
        prior: ``(labels,)``, above 0, their sum 1.

    Returns:
        ``(labels,)``, float32.
    """
    bias = torch.zeros_like(prior)
    for _ in range(_ROUNDS):
        bias += (prior.log() - (logits + bias).softmax(-1).mean(0).log()) / 2
    return bias


def _tag(registry: Registry, lang: str) -> str:
    """Return the tag of a language given as in `attach`: by its adapter's name, too."""
    adapter = registry.adapters.get(lang)
    return adapter.language if adapter and adapter.language else standard_tag(lang)


def keep_mean(model: nn.Module, task: str, tag: str, mean: Tensor, *, under: Stack) -> None:
    """Keep the mean of a language at the input of a task's head, in place of an older one.

    Args:
        model: With the task's adapter and head.
        task: The task's name.
        tag: The language's tag, or `SOURCE`, to which also the task's own language stands.
        mean: ``(hidden,)``.
        under: What the task stood on when it was measured.

    Raises:
        CompositionError: If the mean of the source is not known and this is not it.
    """
    registry, heads = registry_of(model), heads_of(model)
    assert registry is not None and heads is not None
    adapter = registry.require(task)
    means = {**heads.offsets.means(task), tag: mean}
    known = adapter.facts.get("centring")
    facts = {**(known if isinstance(known, dict) else {}), tag: str(under)}
    if tag == adapter.language:
        means[SOURCE], facts[SOURCE] = mean, str(under)
    if SOURCE not in means:
        raise CompositionError(
            f"{task!r} does not say around which mean its head was trained (adapters of older "
            f"versions and other libraries do not). Centre its own language first: "
            f"adapterx.centre(model, tokenizer, texts, lang={adapter.language or 'en'!r}, ...)"
            + ("." if adapter.language else ", and add the task with language=....")
        )
    heads.offsets.put(task, means)
    registry.adapters[task] = replace(adapter, facts={**adapter.facts, "centring": facts})
