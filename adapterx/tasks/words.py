"""Words of running text: split, and put together again."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

__all__ = ["UNSPACED", "joined", "marked", "words_of"]

# Thai, Lao, Tibetan, Burmese, Khmer, kana, Han: no spaces between words.
UNSPACED: Final = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)


def words_of(text: str) -> tuple[str, ...]:
    """Return the words of a text that nobody split.

    They stand between white space; punctuation at their ends is words of its own, as in treebanks
    and entity data, and so is each character of a script without spaces, as in WikiANN. Where
    words were split for a language, theirs are better.
    """
    words: list[str] = []
    for part in UNSPACED.sub(r" \g<0> ", text).split():
        marks = "".join(mark for mark in part if unicodedata.category(mark).startswith("P"))
        word = part.strip(marks)
        before, _, after = part.partition(word) if word else (part, "", "")
        words += [*before, *([word] if word else []), *after]
    return tuple(words)


def joined(words: Sequence[str]) -> str:
    """Return words in one text, without spaces beside characters of scripts that have none."""
    script = UNSPACED.pattern
    return re.sub(rf"(?<={script}) (?={script})", "", " ".join(words))


def marked(words: Sequence[str], spans: Iterable[tuple[str, int, int]]) -> str:
    """Return words in one text, spans of them as ``[TYPE words]``.

    Args:
        words: The words.
        spans: Type, index of the first word, and of the one behind; they do not overlap.
    """
    parts, at = list[str](), 0
    for kind, first, end in sorted(spans, key=lambda span: span[1]):
        parts += [*words[at:first], f"[{kind} {joined(words[first:end])}]"]
        at = end
    return joined([*parts, *words[at:]])
