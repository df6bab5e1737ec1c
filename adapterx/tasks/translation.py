"""Translation with an encoder-decoder (mBART, NLLB, M2M100, mT5), scored by sacrebleu."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final, Self

import datasets
import evaluate
import langcodes
import numpy as np
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from adapterx.activation import using
from adapterx.composition import JsonValue
from adapterx.data import Row, SentencePair
from adapterx.encoders import Head
from adapterx.errors import ConfigError, near_match
from adapterx.heads import Problem
from adapterx.prediction import max_length_of
from adapterx.registry import unwrap
from adapterx.tasks.classification import text_batch
from adapterx.tasks.metric import Array, TaskMetric
from adapterx.tasks.running import outputs_of
from adapterx.tasks.task import wrong_pair

__all__ = ["Translation", "TranslationMetric", "language_codes"]

# What cross-entropy leaves out, by torch's and Hugging Face's convention.
_IGNORED: Final = -100
# CLDR's distance: 4 is a language's usual region, 5 another script or an unusual region.
_DISTANCE: Final = 4


class TranslationMetric(TaskMetric):
    """Corpus BLEU and chrF, 0 to 100, as sacrebleu computes them.

    Both are functions of counts summed over sentences (Post, 2018,
    https://aclanthology.org/W18-6319; Popović, 2015, https://aclanthology.org/W15-3049).

    Raises:
        ConfigError: If sacrebleu is not installed, or does not know the tokenisation.
    """

    def __init__(self, tokenisation: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        try:
            from sacrebleu.metrics import BLEU, CHRF
        except ImportError as error:
            raise ConfigError(
                "BLEU and chrF need sacrebleu. Install it: pip install 'adapterx[translation]'."
            ) from error
        if tokenisation not in BLEU.TOKENIZERS:
            raise ConfigError(
                f"bleu_tokenizer is {tokenisation!r} (known: {', '.join(BLEU.TOKENIZERS)})."
                f"{near_match(tokenisation, BLEU.TOKENIZERS)}"
            )
        # What they call a segment's statistics is meant for resampling, and made public nowhere.
        self.metrics = {"bleu": BLEU(tokenize=tokenisation), "chrf": CHRF()}

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
        return evaluate.MetricInfo(
            description="Corpus BLEU and chrF.",
            citation="",
            inputs_description="Translations.",
            features=datasets.Features(features),
        )

    def statistics(self, predictions: Sequence[str], references: Sequence[str]) -> Array:
        """Return the counts of BLEU and chrF for each sentence."""
        columns = [
            metric._extract_corpus_statistics(predictions, [references])
            for metric in self.metrics.values()
        ]
        return np.concatenate([np.asarray(one, dtype=np.float64) for one in columns], axis=1)

    def scores(self, totals: Array) -> dict[str, Array]:
        """Return ``bleu`` and ``chrf``."""
        split = 2 + 2 * self.metrics["bleu"].max_ngram_order  # lengths; matches, n-grams by order
        parts = np.split(totals.reshape(-1, totals.shape[-1]).astype(np.int64), [split], axis=1)
        return {
            name: np.array(
                [metric._compute_score_from_stats(row).score for row in part.tolist()]
            ).reshape(totals.shape[:-1])
            for (name, metric), part in zip(self.metrics.items(), parts, strict=True)
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """A sentence in another language.

    `source_language` and `target_language` are set on the tokenizer, where it has codes of
    languages; T5's have none: say what to do in `prefix`.

    Attributes:
        labels: None.
        source_column: Field of the sentence.
        target_column: Field of its translation.
        source_language: BCP-47 tag, or a code of the tokenizer's own.
        target_language: The same.
        prefix: Stands before each source.
        num_beams: Beams of the search; 1 is greedy.
        max_new_tokens: Longest translation.
        bleu_tokenizer: sacrebleu's tokenisation for BLEU: ``13a``, ``zh``, ``char``, ….
    """

    kind: ClassVar[str] = "translation"
    score: ClassVar[str] = "chrf"
    head: ClassVar[Head] = "seq2seq"
    problem: ClassVar[Problem | None] = None

    labels: tuple[str, ...] = ()
    source_column: str = "source"
    target_column: str = "target"
    source_language: str | None = None
    target_language: str | None = None
    prefix: str = ""
    num_beams: int = 4
    max_new_tokens: int = 128
    bleu_tokenizer: str = "13a"

    def __post_init__(self) -> None:
        for name in ("num_beams", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} is {getattr(self, name)} in {self.kind}. Set it to 1 or more."
                )

    def record(self, row: Row) -> SentencePair:
        """Make a pair of a row; see `adapterx.tasks.task.Task`."""
        return SentencePair(
            row.text(self.source_column), row.text(self.target_column), row.language
        )

    def ask(self, text: str, *pair: str) -> SentencePair:
        """Make a pair of a source alone."""
        if pair:
            raise wrong_pair(self.kind, pair, "sources only")
        return SentencePair(text, "")

    def with_labels(self, records: Sequence[SentencePair]) -> Self:
        """Return the task: it has no labels."""
        return self

    def batch(
        self, tokenizer: PreTrainedTokenizerBase, records: Sequence[SentencePair], max_length: int
    ) -> dict[str, Any]:
        """Return token ids, and ``labels``, ``(batch, target sequence)``, -100 at padding."""
        self._set_languages(tokenizer)
        batch = text_batch(tokenizer, self._sources(records), max_length)
        targets = tokenizer(
            text_target=[record.target for record in records],
            padding=True,
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        )
        batch["labels"] = targets["input_ids"].masked_fill(targets["attention_mask"] == 0, _IGNORED)
        return batch

    def items(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the number of target tokens."""
        labels: Tensor = batch["labels"]
        return (labels != _IGNORED).sum().float()

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Return the cross-entropy of the target tokens, summed."""
        # Labels go along: families differ in how they make the decoder's inputs of them.
        logits: Tensor = model(**batch).logits
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
        records: Sequence[SentencePair],
        *,
        batch_size: int = 64,
        languages: Sequence[str] | None = None,
    ) -> list[str]:
        """Return the translation of each record by beam search, the records of a language at once.

        ``generate`` does not come in by the model's own door, so rows cannot choose there.
        """
        if not records:
            return []
        inner = unwrap(model)
        start = self._set_languages(tokenizer)
        encoded = tokenizer(
            self._sources(records), truncation=True, max_length=max_length_of(tokenizer, inner)
        )
        features = [{key: encoded[key][index] for key in encoded} for index in range(len(records))]
        generate = partial(
            inner.generate,
            num_beams=self.num_beams,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            **start,
        )
        answers = [""] * len(records)
        chosen_by: Sequence[str | None] = languages or [None] * len(records)
        for language in dict.fromkeys(chosen_by):
            where = [index for index, choice in enumerate(chosen_by) if choice == language]
            with nullcontext() if language is None else using(model, lang=language):
                for chosen, ids in outputs_of(
                    model,
                    tokenizer,
                    [features[index] for index in where],
                    batch_size=batch_size,
                    call=generate,
                ):
                    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
                    for index, text in zip(chosen, texts, strict=True):
                        answers[where[index]] = text.strip()
        return answers

    def tell(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, records: Sequence[SentencePair]
    ) -> list[dict[str, JsonValue]]:
        """Return the translation."""
        return [{"answer": text} for text in self.predict(model, tokenizer, records)]

    def reference(self, record: SentencePair) -> str:
        """Return the right translation."""
        return record.target

    def metric(self) -> TranslationMetric:
        """Return BLEU and chrF."""
        return TranslationMetric(self.bleu_tokenizer)

    def confusion(self, predictions: Sequence[str], references: Sequence[str]) -> None:
        """Return None: there are no labels."""

    def show(self, record: SentencePair) -> str:
        """Return the source."""
        return " ".join(record.source.split())

    def _sources(self, records: Sequence[SentencePair]) -> list[str]:
        return [self.prefix + record.source for record in records]

    def _set_languages(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
        """Set a tokenizer's languages; return what ``generate`` has to know of the target's."""
        codes = language_codes(tokenizer)
        if not codes:
            return {}
        tokenizer.src_lang = _code("source_language", self.source_language, codes)
        tokenizer.tgt_lang = _code("target_language", self.target_language, codes)
        target = codes[tokenizer.tgt_lang]
        # Most families put the code first in the target; mBART's first release put it last, and
        # starts the decoder with it.
        first = tokenizer(text_target="")["input_ids"][0] == target
        return {"forced_bos_token_id" if first else "decoder_start_token_id": target}


def language_codes(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return a tokenizer's codes of languages with their ids; none for T5's."""
    if not hasattr(tokenizer, "src_lang"):
        return {}
    known: Mapping[str, int] | None = getattr(tokenizer, "lang_code_to_id", None)
    if known is not None:
        return dict(known)
    # NLLB's are among its special tokens, each a language and a script.
    return {
        token: tokenizer.convert_tokens_to_ids(token)
        for token in tokenizer.all_special_tokens
        if "_" in token and langcodes.tag_is_valid(token)
    }


def _code(setting: str, tag: str | None, codes: Collection[str]) -> str:
    """Return the code that a tag means: itself, or that of the same language and script.

    Raises:
        ConfigError: If there is none.
    """
    # mBART writes XX for no region; BCP 47 leaves it out.
    tags = {code.removesuffix("_XX"): code for code in codes}
    if tag is not None and tag in codes:
        return tag
    if tag is not None and langcodes.tag_is_valid(tag):
        found, _ = langcodes.closest_match(tag, list(tags), max_distance=_DISTANCE)
        if found in tags:
            return tags[found]
    raise ConfigError(
        f"{setting} is {tag!r} in translation, for a tokenizer that names languages."
        f"{near_match(str(tag), codes)} Give a tag or one of its codes: {', '.join(codes)}."
    )
