"""Checking data before anything is trained on it: counts, labels, lengths, duplicates, tokens."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from adapterx.data.counting import Counts
from adapterx.data.fields import fields_of
from adapterx.data.findings import DataReport
from adapterx.data.rows import Row
from adapterx.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Part", "check_data"]

_SAMPLE: Final = 200  # rows of each part that say what fields hold
_BATCH: Final = 512


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one split.

    Attributes:
        split: Its name; empty where there are no splits.
        rows: Opens them, anew each time.
    """

    split: str
    rows: Callable[[], Iterator[Row]]


def check_data(
    parts: Sequence[Part],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    record: Callable[[Row], object] | None = None,
    max_length: int = 128,
    others: Sequence[str] = (),
) -> DataReport:
    """Read data through, and return what is to be seen.

    Two rows are duplicates if all their texts are equal after NFKC, case folding and making any
    space one. Texts are not kept: of each row there are a few hashes and lengths.

    Args:
        parts: What to read; rows say their language.
        tokenizer: Counts tokens; None for none.
        record: A task's `record`, which says whether it can read a row; None to ask none.
        max_length: Tokens after which a text is cut.
        others: Names of fields that are neither text nor label.

    Raises:
        DataError: If a source is broken, a split is empty, or no field is a text.
    """
    sample = [row for part in parts for row in itertools.islice(part.rows(), _SAMPLE)]
    if not sample:
        raise DataError("There are no rows to check: the data are empty.")
    counts = Counts(fields_of(sample, others=others), tokenizer, record, max_length)
    # What is trained on comes first: the others are compared with it.
    splits = sorted({part.split for part in parts}, key=_order)
    for split in splits:
        for part in parts:
            rows = part.rows() if part.split == split else iter(())
            while batch := list(itertools.islice(rows, _BATCH)):
                counts.add(split, batch)
        if not counts.rows[split]:
            raise DataError(f"Split {split!r} is empty. Fill its files, or leave them out.")
    return counts.report(splits)


def _order(split: str) -> tuple[int, str]:
    known = ("train", "dev", "valid", "val", "eval", "test")
    return next((at for at, name in enumerate(known) if split.startswith(name)), 9), split
