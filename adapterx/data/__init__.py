"""Data: labelled texts, plain lines and translation pairs, read from files line by line."""

from __future__ import annotations

from adapterx.data.readers import Example, Pair, read_examples, read_lines, read_pairs

__all__ = ["Example", "Pair", "read_examples", "read_lines", "read_pairs"]
