"""Identification: which language a text is in, by Compact Language Detector 2 (`pycld2`)."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from typing import Final, NamedTuple

import langcodes

from adapterx.errors import ConfigError
from adapterx.languages import UNDETERMINED, language_name, standard_tag

__all__ = ["Verdict", "check_language", "identify", "matching", "told_languages"]

# Of CLDR: regions and written standards differ by less, languages by more.
_SAME: Final = 10

# Lines that are looked at, and the share of them that contradicts what was claimed.
_LOOKED_AT: Final = 200
_CONTRADICTED: Final = 0.6


class Verdict(NamedTuple):
    """What a text is thought to be in.

    Attributes:
        tag: BCP-47 tag; None if nothing is known.
        confidence: Share of the text that is in this language, 0 to 1.
    """

    tag: str | None
    confidence: float


def identify(texts: Sequence[str]) -> list[Verdict]:
    """Say which language each text is in.

    Some 160 languages are known. One that is not is taken for another one or for none. Of a few
    words nothing is known.

    Raises:
        ConfigError: If the library is not installed.
    """
    try:
        import pycld2
    except ImportError:
        raise ConfigError(
            "Telling a text's language needs the library pycld2. Install it: "
            "pip install 'adapterx[languages]'. Or name the language."
        ) from None
    verdicts = []
    for text in texts:
        # It refuses characters that are no text.
        plain = "".join(c if c.isprintable() else " " for c in text)
        _, _, (best, *_) = pycld2.detect(plain.encode("utf-8", "ignore"))
        known = best[1] not in ("un", "xxx")
        verdicts.append(
            Verdict(standard_tag(best[1]), best[2] / 100) if known else Verdict(None, 0.0)
        )
    return verdicts


def told_languages(
    texts: Sequence[str], known: Collection[str], *, threshold: float = 0.7
) -> list[str]:
    """Return the tag that each text's language goes by among known ones.

    Args:
        texts: Texts.
        known: Tags of languages.
        threshold: Confidence below which a text's language is ``"und"``, undetermined.

    Returns:
        Tags: of `known` where one means the language, else the identifier's own.

    Raises:
        ConfigError: If the library is not installed.
    """
    return [
        UNDETERMINED
        if one.tag is None or one.confidence < threshold
        else matching(one.tag, known) or one.tag
        for one in identify(texts)
    ]


def matching(tag: str, known: Collection[str]) -> str | None:
    """Return which of several tags means the same language, as CLDR matches them; None if none.

    ``"tw"`` is found among ``["ak"]``, ``"no"`` among ``["nb"]``.
    """
    return langcodes.closest_supported_match(tag, list(known), max_distance=_SAME)


def _known() -> list[str]:
    import pycld2

    detected = set(pycld2.DETECTED_LANGUAGES)
    return [
        code for name, code in pycld2.LANGUAGES if name in detected and langcodes.tag_is_valid(code)
    ]


def check_language(texts: Sequence[str], tag: str, where: str) -> None:
    """Warn if texts are in a language other than claimed, as far as can be told.

    Says nothing without the library, and of languages that it does not know.

    Args:
        texts: Texts that are claimed to be in one language.
        tag: Its BCP-47 tag.
        where: The file, for the warning.
    """
    if not find_spec("pycld2") or matching(tag, _known()) is None:
        return
    found = identify(texts[:: -(-len(texts) // _LOOKED_AT) or 1])
    others = Counter(one.tag for one in found if one.tag is not None)
    if not others:
        return
    best, count = others.most_common(1)[0]
    if matching(best, [tag]) is None and count >= _CONTRADICTED * len(found):
        warnings.warn(
            f"{where} looks like {language_name(best)} ({best}), not like {language_name(tag)} "
            f"({tag}), in {count} of {len(found)} lines that were looked at.",
            stacklevel=2,
        )
