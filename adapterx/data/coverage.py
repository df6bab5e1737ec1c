"""Coverage: what a tokenizer and an encoder's pretraining know of a language, before training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from adapterx.data.check import check_rows
from adapterx.data.rows import Row
from adapterx.languages import script_name, was_seen

__all__ = ["Coverage", "coverage"]

# Shares of unknown tokens: from here on single words are lost, and most of the text.
_SOME, _MUCH = 0.01, 0.1
# Tokens per word, or per character, where texts take twice the room of most languages.
_MANY: Final = {"word": 4.0, "character": 1.2}


@dataclass(frozen=True, slots=True)
class Coverage:
    """What is known of a language.

    Attributes:
        language: BCP-47 tag.
        script: English name of the script it is usually written in.
        texts: How many were read.
        fertility: Tokens per word, or per character.
        per: What the fertility counts: characters where words are not set apart by spaces.
        unknown: Share of the tokens that are the unknown one.
        seen: Whether the encoder's pretraining had text in it, None if that is not known.
        verdict: One word.
        advice: What to do, a sentence or two.
    """

    language: str
    script: str
    texts: int
    fertility: float
    per: Literal["word", "character"]
    unknown: float
    seen: bool | None
    verdict: Literal["good", "unlearned", "long", "gaps", "unreadable"]
    advice: str

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON data."""
        return dataclasses.asdict(self)


def coverage(texts: Sequence[str], tokenizer: Any, *, lang: str, encoder: str) -> Coverage:
    """Say what a tokenizer does to a language, and what to do about it.

    Args:
        texts: Some hundred lines of the language.
        tokenizer: The encoder's.
        lang: BCP-47 tag.
        encoder: The encoder's name, by which its pretraining is known.

    Raises:
        DataError: If there is no text.
    """
    rows = [Row({"text": text}, f"text {number}", lang) for number, text in enumerate(texts, 1)]
    (found,) = check_rows({"text": rows}, tokenizer=tokenizer).languages
    fertility, unknown = found.fertility or 0.0, found.unknown or 0.0
    seen = was_seen(lang, encoder)
    verdict, advice = _verdict(fertility, found.per, unknown, seen)
    return Coverage(
        language=lang,
        script=script_name(lang),
        texts=len(texts),
        fertility=fertility,
        per=found.per,
        unknown=unknown,
        seen=seen,
        verdict=verdict,
        advice=advice,
    )


def _verdict(
    fertility: float, per: Literal["word", "character"], unknown: float, seen: bool | None
) -> tuple[Literal["good", "unlearned", "long", "gaps", "unreadable"], str]:
    if unknown >= _MUCH:
        return (
            "unreadable",
            "The tokenizer loses much of the text. Give the language's adapter pieces of its own "
            "(adapterx train-language --extend-vocab 2000), take an encoder that reads this "
            "script, or write the language in another one.",
        )
    if unknown >= _SOME:
        return (
            "gaps",
            "Single characters or words are lost. Look at which: unusual spelling or forms of "
            "letters can be made usual before anything is trained.",
        )
    if fertility >= _MANY[per]:
        return (
            "long",
            "Words are cut small: texts take twice the tokens of most languages. Raise max_length, "
            "and train a language adapter, with longer pieces of its own (adapterx train-language "
            "--extend-vocab 2000).",
        )
    if seen is False:
        return (
            "unlearned",
            "The tokenizer reads it, but the encoder was not pretrained on it. Centre your task "
            "on a few hundred lines (adapterx centre), and train a language adapter on "
            "translations (adapterx train-language; with --extend-vocab 2000 where words are cut "
            "small).",
        )
    return ("good", "Try the task as it is, then centred (adapterx centre).")
