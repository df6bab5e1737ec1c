"""Data: rows of files, folders and datasets; streams, mixtures, label maps, and a check."""

from __future__ import annotations

from adapterx.data.check import check_rows
from adapterx.data.labels import balanced_weights, relabel
from adapterx.data.lines import read_lines
from adapterx.data.mixing import Mixture, by_language, few_shot, mix, sampling_shares
from adapterx.data.readers import SentencePair, read_pairs, read_rows, rows_of
from adapterx.data.report import Report
from adapterx.data.rows import Row
from adapterx.data.sources import Source, choose_split, find_sources
from adapterx.data.stream import Stream

__all__ = [
    "Mixture",
    "Report",
    "Row",
    "SentencePair",
    "Source",
    "Stream",
    "balanced_weights",
    "by_language",
    "check_rows",
    "choose_split",
    "few_shot",
    "find_sources",
    "mix",
    "read_lines",
    "read_pairs",
    "read_rows",
    "relabel",
    "rows_of",
    "sampling_shares",
]
