"""Data: records, plain lines and translation pairs, read from files line by line."""

from __future__ import annotations

from adapterx.data.readers import Pair, Row, read_lines, read_pairs, read_rows

__all__ = ["Pair", "Row", "read_lines", "read_pairs", "read_rows"]
