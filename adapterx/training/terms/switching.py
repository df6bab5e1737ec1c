"""Code-switching: words of the training texts become their translations, anew in every epoch.

Qin et al., 2020, https://arxiv.org/abs/2006.06402. It changes what is read and adds no loss, so it
wraps the records and is no term.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from adapterx.data.lines import numbered_lines
from adapterx.errors import ConfigError, DataError
from adapterx.training.batches import Records, count_of, in_order

__all__ = ["Switched", "read_dictionary"]

# A letter or digit, with marks, apostrophes and hyphens within.
_WORD: Final = re.compile(r"\w(?:[\w\u0300-\u036f'’-]*[\w\u0300-\u036f])?")
_TEXTS: Final = ("text", "text_pair")
_WORDS: Final = ("tokens",)


def read_dictionary(paths: Sequence[str | Path]) -> dict[str, list[str]]:
    """Read bilingual dictionaries: a word, a tab and its translation a line.

    Args:
        paths: The files, of one language or several; a word may have several lines. Lines whose
            first side is of several words are passed over: only words are looked up.

    Returns:
        Translations by word, casefolded, in the order of the files.

    Raises:
        DataError: If a file cannot be read, a line has not two sides, or no word is left.
    """
    found: dict[str, list[str]] = {}
    for path in map(Path, paths):
        known = len(found)
        for number, line in numbered_lines(path):
            if not line.strip():
                continue
            sides = [side.strip() for side in line.split("\t")]
            if len(sides) != 2 or not all(sides):
                raise DataError(
                    f"{path}, line {number}: {line.strip()[:60]!r} is no word, tab, translation."
                )
            if _WORD.fullmatch(sides[0]):
                found.setdefault(sides[0].casefold(), []).append(sides[1])
        if len(found) == known:
            raise DataError(f"{path} has no new word. It needs a word, a tab, its translation.")
    return found


class Switched:
    """Records in whose texts some words are translated; which ones hangs on seed and epoch.

    Words outside the dictionary stay. A translation begins with a capital where its word does.
    """

    def __init__(
        self,
        records: Records[Any],
        dictionary: Mapping[str, Sequence[str]],
        *,
        probability: float,
    ) -> None:
        """Wrap records.

        Args:
            records: With a text, a pair of texts, or words.
            dictionary: Translations by casefolded word, as `read_dictionary` gives them.
            probability: That a word which has translations becomes one of them, above 0 to 1.

        Raises:
            ConfigError: If `probability` is out of range.
        """
        if not 0 < probability <= 1:
            raise ConfigError(
                f"switch_probability is {probability!r}. Set it above 0 and to 1 at most, e.g. 0.3."
            )
        self.records, self.dictionary, self.probability = records, dictionary, probability

    def __len__(self) -> int:
        return count_of(self.records)

    def shuffled(self, seed: int) -> Iterable[Any]:
        """Return the records in an order that hangs on the seed, with words switched by it.

        Raises:
            ConfigError: If they hold neither texts nor words.
        """
        random = np.random.default_rng([seed, len(self.dictionary)])
        return (self._switch(record, random) for record in in_order(self.records, seed))

    def _switch(self, record: Any, random: np.random.Generator) -> Any:
        new: dict[str, Any] = {}
        for field in _TEXTS:
            text = getattr(record, field, None)
            if text is not None:
                new[field] = _WORD.sub(lambda match: self._word(match[0], random), text)
        for field in _WORDS:
            words = getattr(record, field, None)
            if words is not None:
                new[field] = tuple(self._word(word, random) for word in words)
        if not new:
            raise ConfigError(
                f"dictionary is set, but a {type(record).__name__} has no text whose words could "
                "change without its answer. It serves classes, numbers and tags; leave it out."
            )
        return dataclasses.replace(record, **new)

    def _word(self, word: str, random: np.random.Generator) -> str:
        known = self.dictionary.get(word.casefold())
        if known is None or random.random() >= self.probability:
            return word
        chosen = known[int(random.integers(len(known)))]
        return chosen[:1].upper() + chosen[1:] if word[:1].isupper() else chosen
