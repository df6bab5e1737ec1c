"""Data: rows, plain lines and translation pairs, read from files line by line."""

from __future__ import annotations

from adapterx.data.folders import files_of
from adapterx.data.labels import balanced_weights, map_labels
from adapterx.data.lines import read_lines
from adapterx.data.mixing import few_shot, mix
from adapterx.data.pairs import Pair, read_pairs
from adapterx.data.rows import Row, read_rows
from adapterx.data.stream import Stream

__all__ = [
    "Pair",
    "Row",
    "Stream",
    "balanced_weights",
    "few_shot",
    "files_of",
    "map_labels",
    "mix",
    "read_lines",
    "read_pairs",
    "read_rows",
]
