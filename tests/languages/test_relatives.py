"""Relatives of languages, and which language a text is in."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from typing import Any

import pytest

from adapterx.errors import ConfigError, UnknownNameError
from adapterx.identification import check_language, identify, matching, told_languages
from adapterx.relatives import _knowledge, distances, softmax_weights

NEAREST = {
    "rw": (["sw", "yo", "fi", "quy"], "sw"),  # Bantu, neighbours
    "xh": (["zu", "sw", "en"], "zu"),  # Nguni
    "pt": (["es", "de", "ja"], "es"),
    "uk": (["ru", "ro", "tr"], "ru"),  # by descent, though Romania is nearer
    "zh-Hant": (["ja", "zh-Hans", "ko"], "zh-Hans"),
    "luo": (["sw", "is", "quy"], "sw"),  # no family in common: the nearest place
}


@pytest.mark.parametrize(("tag", "others", "nearest"), [(k, *v) for k, v in NEAREST.items()])
def test_the_nearest_language_is_a_relative_or_a_neighbour(
    tag: str, others: list[str], nearest: str
) -> None:
    found = distances(tag, others)
    assert next(iter(found)) == nearest
    assert list(found.values()) == sorted(found.values())
    assert all(0 <= value <= 1 for value in found.values())


def test_a_language_is_no_distance_from_itself_and_distance_goes_both_ways() -> None:
    assert distances("sw", ["sw"])["sw"] == pytest.approx(0, abs=1e-6)
    there, back = distances("sw", ["fi"])["fi"], distances("fi", ["sw"])["sw"]
    assert there == pytest.approx(back)


def test_a_language_that_nobody_knows_is_an_error_or_left_out() -> None:
    with pytest.raises(UnknownNameError, match="URIEL knows nothing of 'qaa'"):
        distances("qaa", ["sw"])
    assert list(distances("sw", ["qaa", "rw"])) == ["rw"]


def test_weights_are_a_softmax_of_nearness() -> None:
    weights = softmax_weights({"rw": 0.1, "zu": 0.2, "fi": 0.9})
    assert sum(weights.values()) == pytest.approx(1, abs=2e-3)
    assert weights["rw"] / weights["zu"] == pytest.approx(2.718, rel=1e-2)
    assert softmax_weights({"rw": 0.1, "zu": 0.2}, temperature=1e-3)["rw"] == 1


TEXTS = {
    "sw": "Wachezaji walifanya mazoezi uwanjani hata mvua iliponyesha jioni.",
    "fr": "Le prix du pain augmente encore cette année dans toute la région.",
    "am": "ዋጋው በዚህ ዓመት እንደገና ጨምሯል።",
    "mi": "I haere mātou ki te hōhipera nā te mea he kirikā tōna.",
}


@pytest.mark.parametrize(("tag", "text"), TEXTS.items(), ids=TEXTS)
def test_the_language_of_a_sentence_is_told(tag: str, text: str) -> None:
    (found,) = identify([text])
    assert found.tag == tag
    assert 0.7 <= found.confidence <= 1


@pytest.mark.parametrize("text", ["", " ", "\x00\x01", "123 …", "𐏿" * 9], ids=repr)
def test_what_is_no_sentence_is_undetermined(text: str) -> None:
    assert told_languages([text], ["sw"]) == ["und"]


def test_a_language_goes_by_the_tag_that_is_known() -> None:
    texts = list(TEXTS.values())
    assert told_languages(texts, ["fr-CA", "sw"]) == ["sw", "fr-CA", "am", "mi"]
    assert matching("ak", ["tw"]) == "tw"
    assert matching("xh", ["zu"]) is None


@pytest.mark.parametrize(("tag", "warned"), [("sw", False), ("fr", True), ("mos", False)], ids=str)
def test_texts_in_another_language_than_claimed_are_warned_of(tag: str, warned: bool) -> None:
    """Of a language that the identifier does not know (Mossi) nothing can be said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_language([TEXTS["sw"]] * 30, tag, "texts.txt")
    said = [str(one.message) for one in caught]
    assert bool(said) == warned
    assert all("texts.txt looks like Swahili (sw), not like French (fr)" in one for one in said)


def test_without_the_libraries_the_way_to_them_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycld2", None)
    with pytest.raises(ConfigError, match=r"pip install 'adapterx\[languages\]'"):
        identify(["text"])
    real = importlib.util.find_spec

    def missing(name: str, *rest: Any) -> Any:
        return None if name in ("urielplus", "pycld2") else real(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", missing)
    _knowledge.cache_clear()
    with pytest.raises(ConfigError, match=r"pip install 'adapterx\[languages\]'"):
        distances("lo", ["th"])
