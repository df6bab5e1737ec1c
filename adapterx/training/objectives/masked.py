"""Masked language modelling at the cost of the masked pieces.

The output embedding is most of a multilingual model's arithmetic: 250,000 rows for each of 2,048
pieces of a batch. Here it is read at masked positions only, and only for pieces that the corpus
uses: a few hundred positions times some thousand rows. What stands between the encoder and the
output embedding (the head's transform, the inverse of an invertible adapter) is the model's own.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from adapterx.composition import JsonValue
from adapterx.errors import ConfigError, DataError
from adapterx.training.config import TrainingConfig
from adapterx.training.objectives.masking import Masking
from adapterx.training.objectives.objective import Corpus, readers
from adapterx.training.objectives.output import at_output, output_embedding
from adapterx.vocabulary import encoded, encodings, tokenizer_of

__all__ = ["MaskedLanguageModelling", "Vocabulary", "masked_batch", "masked_loss", "perplexity"]

# What a padded position has in place of a piece; `cross_entropy` passes over it.
NOTHING: Final = -100


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The pieces over which the loss is taken.

    Attributes:
        ids: Sorted ids in the tokenizer's vocabulary, ``(pieces,)``, int64.
        shares: How many pieces each stands for: a drawn one for those that were not drawn too,
            ``(pieces,)``, float32.
    """

    ids: np.ndarray
    shares: np.ndarray

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        texts: Iterable[str | tuple[str, str]],
        *,
        read_by: Iterable[PreTrainedTokenizerBase] | None = None,
        negatives: int = 0,
        seed: int = 0,
    ) -> Vocabulary:
        """Return the pieces that texts use, special tokens left out.

        Args:
            tokenizer: The encoder's tokenizer.
            texts: The corpus; it is read once. Pieces that a language adapter adds are no part.
            read_by: What reads each text; the tokenizer unless given.
            negatives: So many of the other pieces, drawn without replacement, are added, each
                for its share of them: a loss over few pieces says nothing of all others.
            seed: Of the draw.
        """
        seen = np.zeros(len(tokenizer), dtype=bool)
        each = itertools.repeat(tokenizer) if read_by is None else read_by
        for batch in _chunks(zip(texts, each), 512):  # noqa: B905  # one may be without end
            some, tokenizers = zip(*batch, strict=True)
            for row in encoded(some, tokenizers, add_special_tokens=False, verbose=False):
                ids = np.array(row["input_ids"], dtype=np.int64)
                seen[ids[ids < len(seen)]] = True
        special = sorted(tokenizer.all_special_ids)
        seen[special] = True
        others = np.flatnonzero(~seen)
        shares = np.ones(len(seen), dtype=np.float32)
        if negatives and len(others):
            random = np.random.default_rng(seed)
            drawn = random.choice(others, min(negatives, len(others)), replace=False)
            seen[drawn] = True
            shares[drawn] = len(others) / len(drawn)
        seen[special] = False
        if not seen.any():
            raise ConfigError("The corpus has no piece that the tokenizer knows.")
        ids = np.flatnonzero(seen)
        return cls(ids, shares[ids])

    @classmethod
    def whole(cls, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        """Return all pieces of a tokenizer, special tokens too."""
        return cls(np.arange(len(tokenizer)), np.ones(len(tokenizer), dtype=np.float32))

    def embedding(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Return the rows and bias of a model's output embedding, as `masked_loss` takes them.

        The bias of a piece has the logarithm of its share added, so that the sum of all
        exponentials is expected to be that over the full vocabulary (Bengio and Senécal, 2003,
        https://proceedings.mlr.press/r4/bengio03a.html).

        Raises:
            BaseModelError: If the model has no output embedding that is a linear layer.
        """
        weight, bias = output_embedding(model, self.ids)
        share = torch.from_numpy(np.log(self.shares)).to(weight)
        return weight, share if bias is None else bias + share

    def places(self, ids: np.ndarray) -> np.ndarray:
        """Return where ids stand among `ids`."""
        return np.searchsorted(self.ids, ids)

    def has(self, ids: np.ndarray) -> np.ndarray:
        """Return which ids are among `ids`."""
        return self.ids[self.places(ids).clip(max=len(self.ids) - 1)] == ids


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedLanguageModelling:
    """Learn to fill in hidden pieces of text, or of a sentence beside its translation.

    With `pairs` it is translation language modelling (Conneau and Lample, 2019,
    https://arxiv.org/abs/1901.07291): what is hidden on one side may be read on the other.

    Attributes:
        masking: What is hidden.
        pairs: Whether pairs are read, and not text.
        negatives: So many pieces that the corpus does not use are in the loss too, for all such.
    """

    masking: Masking = field(default_factory=Masking)
    pairs: bool = False
    negatives: int = 0

    @property
    def facts(self) -> dict[str, JsonValue]:
        """Its settings, as JSON."""
        name = "translation" if self.pairs else "masked"
        return {"objective": f"{name} language modelling", **dataclasses.asdict(self)}

    def begin(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        corpora: Mapping[str, Corpus],
        config: TrainingConfig,
    ) -> _Masked:
        """Find the vocabulary, and its part of the output embedding.

        Raises:
            DataError: If an adapter has no text, or no pairs.
            BaseModelError: If the model has no masked-language-modelling head.
        """
        rows: list[tuple[str, str | tuple[str, str]]] = []
        for name, corpus in corpora.items():
            if self.pairs:
                rows += [(name, (pair.source, pair.target)) for pair in corpus.pairs]
            else:
                rows += [(name, line) for line in corpus.text]
            if not rows or rows[-1][0] != name:
                raise DataError(
                    f"{name!r} has no {'pairs' if self.pairs else 'text'} to read. Give files, or "
                    f"leave {'translation' if self.pairs else 'masked'} language modelling out."
                )
        read_by = readers(model, tokenizer, corpora)
        vocabulary = Vocabulary.of(
            tokenizer,
            (text for _, text in rows),
            read_by=(read_by[name] for name, _ in rows),
            negatives=self.negatives,
            seed=config.seed,
        )
        weight, bias = (value.detach() for value in vocabulary.embedding(model))
        lessons = [(name, (name, text)) for name, text in rows]
        return _Masked(lessons, tokenizer, read_by, config, self.masking, vocabulary, weight, bias)


@dataclass(frozen=True, slots=True)
class _Masked:
    """Texts whose pieces are hidden, and the rows of the output embedding they may be."""

    rows: Sequence[tuple[str, tuple[str, str | tuple[str, str]]]]
    tokenizer: PreTrainedTokenizerBase
    read_by: Mapping[str, PreTrainedTokenizerBase]
    config: TrainingConfig
    masking: Masking
    vocabulary: Vocabulary
    weight: Tensor
    bias: Tensor

    def batch(
        self, lessons: Sequence[tuple[str, str | tuple[str, str]]], step: int
    ) -> dict[str, Tensor]:
        return masked_batch(
            self.tokenizer,
            [text for _, text in lessons],
            read_by=[self.read_by[name] for name, _ in lessons],
            masking=self.masking,
            vocabulary=self.vocabulary,
            seed=(self.config.seed, step),
            max_length=self.config.max_length,
        )

    def items(self, batch: Mapping[str, Tensor]) -> Tensor:
        return (batch["targets"] != NOTHING).sum().float()

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return masked_loss(model, batch, self.weight, self.bias)


def perplexity(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    masking: Masking | None = None,
    batch_size: int = 32,
    max_length: int = 128,
) -> float:
    """Return the perplexity of hidden pieces over the full vocabulary, under what is active.

    The same pieces are hidden at every call. A language's own vocabulary reads the texts, so the
    perplexities of two vocabularies are of other pieces and do not compare.

    Args:
        model: With a masked-language-modelling head.
        tokenizer: The encoder's tokenizer.
        texts: Texts that were not trained on.
        masking: What is hidden; None for whole words.
        batch_size: Texts per forward pass.
        max_length: Pieces per text; longer ones are cut.
    """
    vocabulary, reader = Vocabulary.whole(tokenizer), tokenizer_of(model, tokenizer)
    weight, bias = vocabulary.embedding(model)
    device, total, count = weight.device, 0.0, 0
    model.eval()
    with torch.inference_mode():
        for chunk in _chunks(texts, batch_size):
            batch = masked_batch(
                reader,
                chunk,
                masking=masking or Masking(),
                vocabulary=vocabulary,
                seed=(0,),
                max_length=max_length,
            )
            count += int((batch["targets"] != NOTHING).sum())
            batch = {key: value.to(device) for key, value in batch.items()}
            total += float(masked_loss(model, batch, weight, bias))
    return math.exp(total / max(1, count))


def masked_batch(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str | tuple[str, str]],
    *,
    read_by: Sequence[PreTrainedTokenizerBase] | None = None,
    masking: Masking,
    vocabulary: Vocabulary,
    seed: Sequence[int],
    max_length: int,
) -> dict[str, Tensor]:
    """Make a batch of texts, or of pairs for translation language modelling, with pieces hidden.

    What is hidden hangs on the seed and the text alone, so that it is the same however rows are
    shared out among processes. A word with a piece outside of `vocabulary` is not hidden: no row
    of the output embedding stands for a language's own pieces, they are read and not guessed.

    Args:
        tokenizer: The encoder's tokenizer.
        texts: The texts, or pairs.
        read_by: What reads each text; the tokenizer unless given.
        masking: What is hidden.
        vocabulary: What hidden pieces may be.
        seed: Numbers.
        max_length: Pieces per text; longer ones are cut.

    Returns:
        The inputs; ``positions``, ``(batch, hidden pieces)``, where pieces are hidden, 0 where a
        row has fewer; ``targets``, the same shape, what they were, as places in the vocabulary,
        `NOTHING` where a row has fewer. All int64, on the CPU.

    Raises:
        ConfigError: If the tokenizer has no mask.
    """
    if tokenizer.mask_token_id is None:
        raise ConfigError(
            f"The tokenizer {type(tokenizer).__name__} has no mask token, so nothing can be "
            "hidden. Train on pairs: objectives without masked language modelling."
        )
    rows: list[dict[str, list[int]]] = []
    found: list[tuple[list[int], np.ndarray]] = []
    read = encodings(
        texts,
        read_by or [tokenizer] * len(texts),
        truncation=True,
        max_length=max_length,
        return_special_tokens_mask=True,
    )
    for text, (made, at) in zip(texts, read, strict=True):
        row = {key: list(value[at]) for key, value in made.items()}
        words = _words(made, at, row.pop("special_tokens_mask"))
        ids = np.array(row["input_ids"])
        random = np.random.default_rng([*seed, zlib.crc32(str(text).encode())])
        others = {word for word, known in zip(words, vocabulary.has(ids), strict=True) if not known}
        words = [None if word in others else word for word in words]
        positions = masking.choose(words, random)
        row["input_ids"] = masking.hide(
            ids, positions, random, mask=tokenizer.mask_token_id, others=vocabulary.ids
        ).tolist()
        rows.append(row)
        found.append((positions, vocabulary.places(ids[positions])))
    batch = dict(tokenizer.pad({key: [row[key] for row in rows] for key in rows[0]}))
    width = max(1, *(len(positions) for positions, _ in found))
    places = np.zeros((len(rows), width), dtype=np.int64)
    targets = np.full((len(rows), width), NOTHING)
    for at, (positions, wanted) in enumerate(found):
        places[at, : len(positions)] = positions
        targets[at, : len(positions)] = wanted
    tensors = {key: torch.tensor(value) for key, value in batch.items()}
    return {**tensors, "positions": torch.tensor(places), "targets": torch.tensor(targets)}


def masked_loss(
    model: nn.Module, batch: Mapping[str, Tensor], weight: Tensor, bias: Tensor
) -> Tensor:
    """Return the cross-entropy of hidden pieces, in nats, summed; a scalar, float32.

    Args:
        model: With a masked-language-modelling head.
        batch: As `masked_batch` makes it, with ``lang`` where rows choose their language.
        weight: The output embedding's rows of the vocabulary, ``(pieces, hidden)``.
        bias: Its bias there, ``(pieces,)``: both as `Vocabulary.embedding` gives them.
    """
    inputs = {key: value for key, value in batch.items() if key not in ("positions", "targets")}
    known = batch["targets"] != NOTHING
    with at_output(model, batch["positions"]) as read:
        model(**inputs)
    states = read[0][known].to(weight.dtype)
    logits = functional.linear(states, weight, bias)
    return functional.cross_entropy(logits.float(), batch["targets"][known], reduction="sum")


def _words(encoded: Any, at: int, special: Sequence[int]) -> list[int | None]:
    """Return the number of each piece's word; each piece is one where the tokenizer knows none."""
    if encoded.is_fast:
        sides = encoded.sequence_ids(at)
        words = encoded.word_ids(at)
        # In a pair both sides count their words from 0.
        return [
            None if one or word is None else 2 * word + (side or 0)
            for one, word, side in zip(special, words, sides, strict=True)
        ]
    return [None if one else place for place, one in enumerate(special)]


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk
