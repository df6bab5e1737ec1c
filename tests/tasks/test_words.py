"""Words of running text: what they are, and that nothing but white space is lost."""

from __future__ import annotations

import pytest

from adapterx.tasks.words import joined, marked, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Cairo lies on it.", "Cairo lies on it ."),
        ('"Ng\'ombe (2)", alisema…', '" Ng\'ombe ( 2 ) " , alisema …'),
        ("U.S. and Côte d'Ivoire", "U.S . and Côte d'Ivoire"),
        ("-- ?!", "- - ? !"),
        ("नील नदी है।", "नील नदी है ।"),
        ("他来自北京。ok", "他 来 自 北 京 。 ok"),
        (" \n", ""),
    ],
)
def test_punctuation_and_unspaced_characters_are_words(text: str, words: str) -> None:
    found = words_of(text)
    assert list(found) == words.split()
    assert "".join(found) == "".join(text.split())


def test_spans_stand_in_brackets_in_the_order_of_the_words() -> None:
    words = ("Ada", "Lovelace", "in", "London", ".")
    spans = {("LOC", 3, 4), ("PER", 0, 2)}
    assert marked(words, spans) == "[PER Ada Lovelace] in [LOC London] ."
    assert marked(words, ()) == joined(words) == "Ada Lovelace in London ."
    assert marked(words_of("他来自北京"), [("LOC", 3, 5)]) == "他来自 [LOC 北京]"
