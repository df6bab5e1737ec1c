"""Token classification: a tag for every word (named entities in BIO tags, parts of speech).

Words come split. The first piece of a word carries its tag and gives its answer, but not a piece of
the mere space before it: SentencePiece puts one before most Chinese, Japanese and Thai words, and
an English adapter never saw such a piece with a tag (measured on the packaged encoder, parts of
speech from 3,000 English sentences: Chinese .34 with it, .67 without, Japanese .23 and .56). A word
that becomes no piece (a control character, a zero-width space) is answered ``O``, or ``X`` as
Universal Dependencies tags what is no word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Literal, Self

import datasets
import evaluate
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BatchEncoding, PreTrainedTokenizerBase

from adapterx.composition import JsonValue
from adapterx.data import Row
from adapterx.encoders import Head
from adapterx.errors import BaseModelError, ConfigError, DataError, near_match
from adapterx.heads import Problem
from adapterx.prediction import max_length_of
from adapterx.registry import unwrap
from adapterx.tasks.classification import ClassificationMetric
from adapterx.tasks.metric import Array, TaskMetric, precision_recall_f1, ratio
from adapterx.tasks.running import outputs_of
from adapterx.tasks.task import wrong_pair
from adapterx.tasks.words import joined, marked, words_of
from adapterx.vocabulary import tokenizer_of

__all__ = ["EntityMetric", "Sentence", "TokenClassification", "WordMetric", "entities", "repaired"]

_IGNORED: Final = -100  # what torch's cross-entropy leaves out
_SPACES: Final = ("▁", "Ġ")  # pieces of nothing but the space before a word


@dataclass(frozen=True, slots=True)
class Sentence:
    """The words of a sentence, and a tag for each.

    Attributes:
        tokens: The words.
        tags: Their tags, as many.
        language: BCP-47 tag, None where nobody said.
    """

    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    language: str | None = None


def repaired(tags: Sequence[str]) -> list[str]:
    """Return BIO tags in which every entity begins with ``B-``.

    An ``I-`` that continues nothing of its type begins an entity, as in CoNLL's evaluation
    (Tjong Kim Sang and Buchholz, 2000, https://aclanthology.org/W00-0726).
    """
    result: list[str] = []
    before = "O"
    for tag in tags:
        if tag.startswith("I-") and before[2:] != tag[2:]:
            tag = f"B-{tag[2:]}"
        result.append(tag)
        before = tag
    return result


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Return the entities of BIO tags: type, index of the first word, and of the one behind."""
    marks = [*repaired(tags), "O"]
    found: set[tuple[str, int, int]] = set()
    for start, tag in enumerate(marks):
        if tag.startswith("B-"):
            end = next(at for at in range(start + 1, len(marks)) if marks[at] != f"I-{tag[2:]}")
            found.add((tag[2:], start, end))
    return found


class EntityMetric(TaskMetric):
    """Precision, recall and F1 of whole entities, their type and both ends right.

    As seqeval's default and CoNLL's script: `repaired` tags, micro-averaged over types.
    """

    def __init__(self, labels: tuple[str, ...], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.types = sorted({label[2:] for label in labels if label != "O"})

    def _info(self) -> evaluate.MetricInfo:
        return _tags_info("Micro precision, recall and F1 of entities.")

    def statistics(
        self, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
    ) -> Array:
        """Return, by type, entities right, answered and expected; then words right, and words."""
        result = np.zeros((len(references), 3 * len(self.types) + 2))
        for row, answer, truth in zip(result, predictions, references, strict=True):
            found, expected = entities(answer), entities(truth)
            parts = (found & expected, found, expected)
            counts = [sum(one[0] == kind for one in part) for part in parts for kind in self.types]
            right = sum(a == b for a, b in zip(answer, truth, strict=True))
            row[:] = [*counts, right, len(truth)]
        return result

    def scores(self, totals: Array) -> dict[str, Array]:
        """Return ``precision``, ``recall``, ``f1``, ``accuracy`` of words, ``f1_TYPE`` of each."""
        counts = totals[..., :-2].reshape(*totals.shape[:-1], 3, len(self.types))
        by_type = precision_recall_f1(*np.moveaxis(counts, -2, 0))["f1"]
        return {
            **precision_recall_f1(*np.moveaxis(counts.sum(-1), -1, 0)),
            "accuracy": ratio(totals[..., -2], totals[..., -1]),
            **{f"f1_{kind}": by_type[..., index] for index, kind in enumerate(self.types)},
        }


class WordMetric(TaskMetric):
    """What `ClassificationMetric` says of classes, of words and their tags."""

    def __init__(self, labels: tuple[str, ...], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.indices = {label: index for index, label in enumerate(labels)}

    def _info(self) -> evaluate.MetricInfo:
        return _tags_info("Accuracy of words; macro precision, recall and F1 of tags.")

    def statistics(
        self, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
    ) -> Array:
        """Return how many words of a sentence fall into each cell of the confusion matrix."""
        size = len(self.indices)
        result = np.zeros((len(references), size * size))
        for row, answer, truth in zip(result, predictions, references, strict=True):
            for tag, right in zip(answer, truth, strict=True):
                row[self.indices[right] * size + self.indices[tag]] += 1
        return result

    def scores(self, totals: Array) -> dict[str, Array]:
        """Return ``accuracy``, ``macro_precision``, ``macro_recall`` and ``macro_f1``."""
        return ClassificationMetric(len(self.indices)).scores(totals)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenClassification:
    """A tag for every word.

    Attributes:
        labels: Tags in the order of the logits.
        tokens_column: Field of the words, a list.
        tags_column: Field of their tags, a list as long.
        scheme: ``"bio"`` scores entities and repairs their tags, ``"plain"`` scores words;
            ``"auto"`` is BIO where all tags are ``O``, ``B-…`` and ``I-…``.
    """

    kind: ClassVar[str] = "token-classification"
    head: ClassVar[Head] = "token"
    problem: ClassVar[Problem | None] = None

    labels: tuple[str, ...] = ()
    tokens_column: str = "tokens"
    tags_column: str = "tags"
    scheme: Literal["auto", "bio", "plain"] = "auto"

    def __post_init__(self) -> None:
        if self.scheme not in ("auto", "bio", "plain"):
            raise ConfigError(f"scheme is {self.scheme!r} in {self.kind}. Use auto, bio or plain.")

    @property
    def bio(self) -> bool:
        """Whether the tags mark entities."""
        return self.scheme == "bio" or (self.scheme == "auto" and all(map(_is_bio, self.labels)))

    @property
    def score(self) -> str:
        """F1 of entities, or accuracy of words."""
        return "f1" if self.bio else "accuracy"

    def record(self, row: Row) -> Sentence:
        """Make a sentence of a row."""
        tokens = self._texts(row, self.tokens_column)
        tags = self._texts(row, self.tags_column)
        if len(tokens) != len(tags) or not tokens:
            raise DataError(
                f"{row.where}: {len(tokens)} words and {len(tags)} tags. Give each word one tag."
            )
        for tag in tags:
            if self.labels and tag not in self.labels:
                raise DataError(
                    f"{row.where}: tag {tag!r} is not one of {', '.join(self.labels)}."
                    f"{near_match(tag, self.labels)}"
                )
            if self.scheme == "bio" and not _is_bio(tag):
                raise DataError(f"{row.where}: tag {tag!r} is not BIO. Give O, B-… and I-… tags.")
        return Sentence(tokens, tags, row.language)

    def ask(self, text: str, *pair: str) -> Sentence:
        """Make a sentence of the words of a text."""
        if pair:
            raise wrong_pair(self.kind, pair, "texts only")
        return Sentence(words_of(text), ())

    def with_labels(self, records: Sequence[Sentence]) -> Self:
        """Return the task with its tags, or those that occur, sorted.

        Of entities that is ``O``, and both tags of each type. Two must occur.
        """
        found = {tag for record in records for tag in record.tags}
        if replace(self, labels=tuple(found)).bio:
            types = {tag[2:] for tag in found if tag != "O"}
            found = {"O"} | {f"{mark}-{kind}" for mark in "BI" for kind in types}
        elif self.scheme == "auto" and any(tag.startswith(("B-", "I-")) for tag in found):
            odd = min(tag for tag in found if not _is_bio(tag))
            raise DataError(
                f"There are BIO tags, but tag {odd!r} is none. Convert them to BIO, or score each "
                "word by itself with scheme 'plain'."
            )
        if len(found) < 2:
            raise DataError(f"All words of {len(records)} sentences have one tag. Give two.")
        return replace(self, labels=self.labels or tuple(sorted(found)))

    def batch(
        self, tokenizer: PreTrainedTokenizerBase, records: Sequence[Sentence], max_length: int
    ) -> dict[str, Any]:
        """Return token ids, ``(batch, sequence)``, and ``labels`` of the same shape, int64.

        Labels are -100 but at the first piece of a word. What is beyond `max_length` is cut.
        """
        encoded = _encode(tokenizer, records, max_length, padding=True, return_tensors="pt")
        labels = torch.full_like(encoded["input_ids"], _IGNORED)
        for row, record in enumerate(records):
            for word, position in _first_pieces(tokenizer, encoded, row).items():
                labels[row, position] = self.labels.index(record.tags[word])
        return {**encoded, "labels": labels}

    def items(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the number of words with a piece; 1 where there is none, whose loss is 0."""
        labels: Tensor = batch["labels"]
        return (labels != _IGNORED).sum().float().clamp(min=1)

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Return the cross-entropy of the words, summed."""
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        logits: Tensor = model(**inputs).logits
        return functional.cross_entropy(
            logits.float().flatten(0, 1),
            batch["labels"].flatten(),
            ignore_index=_IGNORED,
            reduction="sum",
        )

    def predict(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        records: Sequence[Sentence],
        *,
        batch_size: int = 64,
        languages: Sequence[str] | None = None,
    ) -> list[list[str]]:
        """Return a tag for each word.

        A sentence longer than the encoder reads is read in windows that overlap by a quarter; a
        word is answered where it has most context.
        """
        if not records:
            return []
        tokenizer = tokenizer_of(model, tokenizer)
        limit = max_length_of(tokenizer, unwrap(model))
        encoded = _encode(
            tokenizer, records, limit, stride=limit // 4, return_overflowing_tokens=True
        )
        owners: list[int] = encoded.pop("overflow_to_sample_mapping")
        features = [{key: encoded[key][row] for key in encoded} for row in range(len(owners))]
        fallback = next((tag for tag in ("O", "X") if tag in self.labels), self.labels[0])
        tags = [[fallback] * len(record.tokens) for record in records]
        context = [[-1] * len(record.tokens) for record in records]
        outputs = outputs_of(
            model,
            tokenizer,
            features,
            batch_size=batch_size,
            languages=None if languages is None else [languages[owner] for owner in owners],
        )
        for rows, output in outputs:
            for row, best in zip(rows, output.logits.argmax(-1).tolist(), strict=True):
                owner, words = owners[row], encoded.word_ids(row)
                inside = [position for position, word in enumerate(words) if word is not None]
                for word, position in _first_pieces(tokenizer, encoded, row).items():
                    room = min(position - inside[0], inside[-1] - position)
                    # Not where a window begins amid the word; of equals the earlier window, for
                    # long ones come first, stays: it has the true first piece.
                    if room > context[owner][word]:
                        context[owner][word] = room
                        tags[owner][word] = self.labels[best[position]]
        return [repaired(each) if self.bio else each for each in tags]

    def tell(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, records: Sequence[Sentence]
    ) -> list[dict[str, JsonValue]]:
        """Return ``words`` and ``tags``, ``entities`` of BIO tags, and all in one text.

        It is ``[LOC Cairo] lies on it`` of entities, else ``Cairo/NOUN lies/VERB on/ADP it/PRON``.
        """
        told: list[dict[str, JsonValue]] = []
        for record, tags in zip(records, self.predict(model, tokenizer, records), strict=True):
            answer: dict[str, JsonValue] = {"words": [*record.tokens], "tags": [*tags]}
            if self.bio:
                found = sorted(entities(tags), key=lambda one: one[1])
                answer["entities"] = [
                    {"type": kind, "text": joined(record.tokens[first:end])}
                    for kind, first, end in found
                ]
                answer["answer"] = marked(record.tokens, found)
            else:
                answer["answer"] = " ".join(map("/".join, zip(record.tokens, tags, strict=True)))
            told.append(answer)
        return told

    def reference(self, record: Sentence) -> list[str]:
        """Return the right tags."""
        return list(record.tags)

    def metric(self) -> EntityMetric | WordMetric:
        """Return the metric of entities, or of words."""
        return EntityMetric(self.labels) if self.bio else WordMetric(self.labels)

    def confusion(
        self, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
    ) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the confusion matrix of the words' tags."""
        totals = WordMetric(self.labels).statistics(predictions, references).sum(0)
        return totals.reshape(len(self.labels), -1).astype(np.int64)

    def show(self, record: Sentence) -> str:
        """Return the words."""
        return " ".join(" ".join(record.tokens).split())

    def _texts(self, row: Row, column: str) -> tuple[str, ...]:
        found = row.fields.get(column)
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            fields = ", ".join(map(str, row.fields)) or "none"
            raise DataError(
                f"{row.where}: no list of texts in field {column!r} (fields: {fields})."
            )
        return tuple(found)


def _tags_info(description: str) -> evaluate.MetricInfo:
    tags = [datasets.Value("string")]
    return evaluate.MetricInfo(
        description=description,
        citation="",
        inputs_description="Lists of tags.",
        features=datasets.Features({"predictions": tags, "references": tags}),
    )


def _is_bio(tag: str) -> bool:
    return tag == "O" or tag.startswith(("B-", "I-"))


def _encode(
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Sentence],
    max_length: int,
    **settings: Any,
) -> BatchEncoding:
    if not tokenizer.is_fast:
        raise BaseModelError(
            f"{type(tokenizer).__name__} does not say which word a piece belongs to. Load a fast "
            "tokenizer (AutoTokenizer does where there is one)."
        )
    return tokenizer(
        [list(record.tokens) for record in records],
        is_split_into_words=True,
        truncation=True,
        max_length=max_length,
        **settings,
    )


def _first_pieces(
    tokenizer: PreTrainedTokenizerBase, encoded: BatchEncoding, row: int
) -> dict[int, int]:
    """Return the position of the first piece of each word that has one."""
    words, ids = encoded.word_ids(row), encoded["input_ids"][row]
    spaces = {tokenizer.convert_tokens_to_ids(mark) for mark in _SPACES} - {tokenizer.unk_token_id}
    starts: dict[int, int] = {}
    for position, word in enumerate(words):
        if word is not None and (word not in starts or int(ids[starts[word]]) in spaces):
            starts[word] = position
    return starts
