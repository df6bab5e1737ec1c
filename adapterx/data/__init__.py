"""Data: rows, plain lines and translation pairs, read from files line by line."""

from __future__ import annotations

from adapterx.data.folders import files_of
from adapterx.data.lines import read_lines
from adapterx.data.pairs import Pair, read_pairs
from adapterx.data.rows import Row, read_rows
from adapterx.data.stream import Stream

__all__ = ["Pair", "Row", "Stream", "files_of", "read_lines", "read_pairs", "read_rows"]
