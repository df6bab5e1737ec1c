"""Extractive question answering: the part of a context that answers a question (SQuAD's format).

A context longer than a window is read in windows that overlap; an answer is always a part of the
context as it was given, whatever the tokenizer's normaliser did to its characters.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Self, TypedDict

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
from adapterx.errors import BaseModelError, ConfigError, DataError
from adapterx.heads import Problem
from adapterx.prediction import max_length_of
from adapterx.registry import unwrap
from adapterx.tasks.metric import Array, TaskMetric, ratio
from adapterx.tasks.running import outputs_of
from adapterx.tasks.task import wrong_pair
from adapterx.tasks.words import UNSPACED
from adapterx.vocabulary import tokenizer_of

__all__ = ["AnswerMetric", "Gold", "Question", "QuestionAnswering", "normalised"]

# As MLQA's evaluation, a language's articles (Arabic's is a part of the word).
_ARTICLES: Final[Mapping[str, str]] = {
    "ar": "ال",
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "en": r"\b(a|an|the)\b",
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
    "vi": r"\b(của|là|cái|chiếc|những)\b",
}
_QUESTION_PIECES: Final = 64  # the rest of a longer question is not read, as in BERT's SQuAD


@dataclass(frozen=True, slots=True)
class Question:
    """A question, the text with its answer, and the answers that people gave.

    Attributes:
        id: Name of the question in its data set; may be empty.
        context: The text.
        question: The question.
        answers: Right answers, parts of the context; none where it has no answer.
        starts: Where they begin, in characters.
        language: BCP-47 tag of the context, None where nobody said.
    """

    id: str
    context: str
    question: str
    answers: tuple[str, ...] = ()
    starts: tuple[int, ...] = ()
    language: str | None = None


class Gold(TypedDict):
    """What an answer is compared with: all right answers, and their language, empty if unsaid."""

    answers: list[str]
    language: str


def normalised(text: str, language: str = "") -> list[str]:
    """Return the words of an answer as they are compared.

    As MLQA's evaluation (Lewis et al., 2020, https://aclanthology.org/2020.acl-main.653): lower
    case, no punctuation of any script, no articles (of ar, de, en, es and vi). Characters of
    scripts without spaces are words of their own; MLQA does so for Chinese, here all are.
    An unsaid language is English: so does SQuAD's evaluation, which XQuAD uses for all languages.
    """
    kept = "".join(
        mark
        for mark in text.lower()
        if mark not in string.punctuation and not unicodedata.category(mark).startswith("P")
    )
    articles = _ARTICLES.get((language or "en").split("-")[0])
    kept = kept if articles is None else re.sub(articles, " ", kept)
    return UNSPACED.sub(r" \g<0> ", kept).split()


class AnswerMetric(TaskMetric):
    """Exact match and F1 over words of `normalised` answers, with the best of the right ones.

    As SQuAD's evaluation (Rajpurkar et al., 2016, 2018); where there is no right answer, no
    answer is right. Both are from 0 to 1.
    """

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Exact match and F1 of answers.",
            citation="",
            inputs_description="Answers; right answers with their language.",
            features=datasets.Features(
                {"predictions": text, "references": {"answers": [text], "language": text}}
            ),
        )

    def statistics(self, predictions: Sequence[str], references: Sequence[Gold]) -> Array:
        """Return the exact match and the F1 of each question, and 1."""
        result = np.ones((len(references), 3))
        for row, answer, gold in zip(result, predictions, references, strict=True):
            words = normalised(answer, gold["language"])
            rights = [normalised(right, gold["language"]) for right in gold["answers"] or [""]]
            row[0] = max(words == right for right in rights)
            row[1] = max(_overlap(words, right) for right in rights)
        return result

    def scores(self, totals: Array) -> dict[str, Array]:
        """Return ``exact_match`` and ``f1``."""
        return {
            "exact_match": ratio(totals[..., 0], totals[..., 2]),
            "f1": ratio(totals[..., 1], totals[..., 2]),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionAnswering:
    """The part of a context that answers a question.

    Attributes:
        labels: What the head's two logits are.
        window: Tokens that are read at once, the question among them.
        stride: Tokens that neighbouring windows share, a third of `window` at most.
        max_answer_length: Tokens of the longest answer.
        null_threshold: A question goes without an answer if that scores higher than the best
            answer by more than this; None answers every question. Training data with unanswered
            questions set it to 0.
    """

    kind: ClassVar[str] = "question-answering"
    score: ClassVar[str] = "f1"
    head: ClassVar[Head] = "span"
    problem: ClassVar[Problem | None] = None

    labels: tuple[str, ...] = ("start", "end")
    window: int = 384
    stride: int = 128
    max_answer_length: int = 30
    null_threshold: float | None = None

    def __post_init__(self) -> None:
        if self.stride < 0 or self.max_answer_length < 1 or self.window < 3 * self.stride:
            raise ConfigError(
                f"window is {self.window}, stride {self.stride}, max_answer_length "
                f"{self.max_answer_length} in {self.kind}. An answer has a token or more, and "
                "windows share a third of theirs at most."
            )

    def record(self, row: Row) -> Question:
        """Make a question of a row; its answers must stand where they are said to."""
        context, found = row.text("context"), row.fields.get("answers", {})
        texts = found.get("text", []) if isinstance(found, Mapping) else None
        starts = found.get("answer_start", []) if isinstance(found, Mapping) else None
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise DataError(
                f"{row.where}: answers are {str(found)[:60]!r}. Give them as "
                '{"text": ["…"], "answer_start": [0]}; empty lists where there is no answer.'
            )
        for text, start in zip(texts, starts, strict=True):
            placed = isinstance(text, str) and type(start) is int and start >= 0
            if not placed or not text.strip() or context[start : start + len(text)] != text:
                raise DataError(
                    f"{row.where}: the context has no {str(text)[:60]!r} at character {start}. "
                    "Count characters (Unicode code points) from 0."
                )
        name = row.fields.get("id")
        return Question(
            "" if name is None else str(name),
            context,
            row.text("question"),
            tuple(texts),
            tuple(starts),
            row.language,
        )

    def ask(self, text: str, *pair: str) -> Question:
        """Make a question of a context and the question."""
        if len(pair) != 1:
            raise wrong_pair(self.kind, pair, "the question for each context")
        return Question("", text, *pair)

    def with_labels(self, records: Sequence[Question]) -> Self:
        """Return the task; questions without an answer make it know such ones."""
        if not any(record.answers for record in records):
            raise DataError(f"None of {len(records)} questions has an answer. Give one at least.")
        if self.null_threshold is None and not all(record.answers for record in records):
            return replace(self, null_threshold=0.0)
        return self

    def batch(
        self, tokenizer: PreTrainedTokenizerBase, records: Sequence[Question], max_length: int
    ) -> dict[str, Any]:
        """Return token ids of all windows, ``(windows, sequence)``, and ``labels``, ``(…, 2)``.

        ``rows`` says whose window each is. Labels are the first and last token of the first
        answer, int64; both are 0 where a window does not have all of it. Nothing is cut: `window`
        says what is read, not `max_length`.
        """
        encoded = self._windows(tokenizer, records, self.window, padding=True)
        owners: list[int] = encoded["overflow_to_sample_mapping"]
        labels = [
            _ends(_context(encoded, row, records[owner].context), records[owner])
            for row, owner in enumerate(owners)
        ]
        batch: dict[str, Any] = {
            key: torch.tensor(encoded[key]) for key in tokenizer.model_input_names if key in encoded
        }
        return batch | {"rows": torch.tensor(owners), "labels": torch.tensor(labels)}

    def items(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the number of windows."""
        labels: Tensor = batch["labels"]
        return torch.tensor(float(len(labels)), device=labels.device)

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Return the mean of both ends' cross-entropies over tokens, summed."""
        inputs = {key: value for key, value in batch.items() if key not in ("rows", "labels")}
        output = model(**inputs)
        logits = torch.stack([output.start_logits, output.end_logits], dim=1).float()
        labels: Tensor = batch["labels"]
        return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / 2

    def predict(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        records: Sequence[Question],
        *,
        batch_size: int = 64,
        languages: Sequence[str] | None = None,
    ) -> list[str]:
        """Return the best answer to each question over its windows; empty for no answer.

        The sum of the two ends' logits is highest for it, of all spans that are not too long.
        """
        if not records:
            return []
        tokenizer = tokenizer_of(model, tokenizer)
        window = min(self.window, max_length_of(tokenizer, unwrap(model)))
        encoded = self._windows(tokenizer, records, window)
        owners: list[int] = encoded["overflow_to_sample_mapping"]
        features = [
            {key: encoded[key][row] for key in tokenizer.model_input_names if key in encoded}
            for row in range(len(owners))
        ]
        answers = [""] * len(records)
        best, null = [-np.inf] * len(records), [np.inf] * len(records)
        outputs = outputs_of(
            model,
            tokenizer,
            features,
            batch_size=batch_size,
            languages=None if languages is None else [languages[owner] for owner in owners],
        )
        for rows, output in outputs:
            ends = torch.stack([output.start_logits, output.end_logits], dim=1).float().cpu()
            for row, (start, end) in zip(rows, ends, strict=True):
                owner = owners[row]
                null[owner] = min(null[owner], float(start[0] + end[0]))
                places = _context(encoded, row, records[owner].context)
                score, first, last = self._best(start, end, list(places))
                if score > best[owner]:
                    best[owner] = score
                    answers[owner] = records[owner].context[places[first][0] : places[last][1]]
        if self.null_threshold is None:
            return answers
        return [
            "" if nothing - score > self.null_threshold else answer
            for answer, score, nothing in zip(answers, best, null, strict=True)
        ]

    def tell(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, records: Sequence[Question]
    ) -> list[dict[str, JsonValue]]:
        """Return the part of the context; empty for no answer."""
        return [{"answer": text} for text in self.predict(model, tokenizer, records)]

    def reference(self, record: Question) -> Gold:
        """Return the right answers and their language."""
        return {"answers": list(record.answers), "language": record.language or ""}

    def metric(self) -> AnswerMetric:
        """Return exact match and F1."""
        return AnswerMetric()

    def confusion(self, predictions: Sequence[str], references: Sequence[Gold]) -> None:
        """Return None: answers are no classes."""

    def show(self, record: Question) -> str:
        """Return the question."""
        return " ".join(record.question.split())

    def _best(self, start: Tensor, end: Tensor, tokens: Sequence[int]) -> tuple[float, int, int]:
        """Return the highest sum of two ends' logits among tokens, and the two."""
        if not tokens:
            return -np.inf, 0, 0
        at = torch.tensor(tokens)
        sums = start[at].unsqueeze(1) + end[at]
        # The last not before the first, nor too far behind.
        allowed = torch.ones_like(sums).triu().tril(self.max_answer_length - 1).bool()
        score, cell = sums.masked_fill(~allowed, -torch.inf).flatten().max(0)
        first, last = divmod(int(cell), len(tokens))
        return float(score), tokens[first], tokens[last]

    def _windows(
        self,
        tokenizer: PreTrainedTokenizerBase,
        records: Sequence[Question],
        window: int,
        **settings: Any,
    ) -> BatchEncoding:
        if not tokenizer.is_fast:
            raise BaseModelError(
                f"{type(tokenizer).__name__} does not say which characters a piece stands for. "
                "Load a fast tokenizer (AutoTokenizer does where there is one)."
            )
        pieces = min(_QUESTION_PIECES, window // 4)
        read = tokenizer(
            [record.question for record in records],
            add_special_tokens=False,
            truncation=True,
            max_length=pieces,
            return_offsets_mapping=True,
        )["offset_mapping"]
        return tokenizer(
            [
                record.question[: at[-1][1] if len(at) == pieces else None]
                for record, at in zip(records, read, strict=True)
            ],
            [record.context for record in records],
            truncation="only_second",
            max_length=window,
            stride=min(self.stride, window // 3),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            **settings,
        )


def _context(encoded: BatchEncoding, row: int, context: str) -> dict[int, tuple[int, int]]:
    """Return the characters of the context that each of its tokens in a window stands for.

    Tokens of nothing but space are left out; a SentencePiece token takes the space before it.
    """
    places: dict[int, tuple[int, int]] = {}
    offsets = encoded["offset_mapping"][row]
    for position, part in enumerate(encoded.sequence_ids(row)):
        start, end = offsets[position]
        text = context[start:end]
        if part == 1 and text.strip():
            places[position] = (start + len(text) - len(text.lstrip()), start + len(text.rstrip()))
    return places


def _ends(places: Mapping[int, tuple[int, int]], record: Question) -> tuple[int, int]:
    """Return the first and last token of the first answer; zeros if not all of it is there."""
    if not record.answers or not places:
        return 0, 0
    text, start = record.answers[0], record.starts[0]
    start += len(text) - len(text.lstrip())
    end = start + len(text.strip())
    inside = [at for at, (first, last) in places.items() if first < end and last > start]
    spans = list(places.values())
    if not inside or spans[0][0] > start or spans[-1][1] < end:
        return 0, 0
    return inside[0], inside[-1]


def _overlap(answer: Sequence[str], right: Sequence[str]) -> float:
    """Return the F1 of two bags of words; 1 where both are empty."""
    if not answer or not right:
        return float(answer == right)
    common = (Counter(answer) & Counter(right)).total()
    return 2 * common / (len(answer) + len(right))
