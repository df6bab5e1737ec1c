"""Languages: tags, names and scripts, by the `langcodes` library (BCP 47, CLDR)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import langcodes

from adapterx.errors import UnknownNameError, near_match

__all__ = ["UNDETERMINED", "language_name", "script_name", "standard_tag", "was_seen"]

# The tag of a text whose language is not known.
UNDETERMINED: Final = "und"
# CC-100, on which XLM-R was trained (Conneau et al., 2020, appendix A), romanised forms included.
_CC100: Final = (
    "af am ar as az be bg bn bn-Latn br bs ca cs cy da de el en eo es et eu fa fi fr fy ga gd gl "
    "gu ha he hi hi-Latn hr hu hy id is it ja jv ka kk km kn ko ku ky la lo lt lv mg mk ml mn mr "
    "ms my ne nl no om or pa pl ps pt ro ru sa sd si sk sl so sq sr su sv sw ta ta-Latn te te-Latn "
    "th tl tr ug uk ur ur-Latn uz vi xh yi zh"
)
# The Wikipedias of multilingual BERT, cased (google-research/bert, multilingual.md).
_WIKIPEDIAS: Final = (
    "af an ar ast az azb ba bar be bg bn bpy br bs ca ce ceb cs cv cy da de el en es et eu fa fi "
    "fr fy ga gl gu he hi hr ht hu hy id io is it ja jv ka kk kn ko ky la lb lmo lt lv mg min mk "
    "ml mn mr ms my nds ne new nl no nn oc pa pl pms pnb pt ro ru scn sco sh sk sl sq sr su sv sw "
    "ta te tg th tl tr tt uk ur uz vi vo war yo zh"
)
# By the last part of an encoder's name. Multilingual E5 began as XLM-R, or as its student.
_PRETRAINED: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        (
            "e5-small-q4",
            "mdeberta-v3-base",
            "Multilingual-MiniLM-L12-H384",
            "multilingual-e5-base",
            "multilingual-e5-large",
            "multilingual-e5-small",
            "xlm-roberta-base",
            "xlm-roberta-large",
            "xlm-roberta-xl",
            "xlm-roberta-xxl",
        ),
        _CC100,
    ),
    "bert-base-multilingual-cased": _WIKIPEDIAS,
    "distilbert-base-multilingual-cased": _WIKIPEDIAS,
}
# Written standards that corpora file under another tag.
_FILED: Final = {"fil": "tl", "nb": "no", "nn": "no"}


def standard_tag(language: str) -> str:
    """Return the standard BCP-47 tag of a tag, an ISO code or an English name.

    ``"swa"``, ``"SW"`` and ``"Swahili"`` all give ``"sw"``.

    Raises:
        UnknownNameError: If no language is known by it.
    """
    if langcodes.tag_is_valid(language):
        return langcodes.standardize_tag(language)
    try:
        return langcodes.find(language).to_tag()
    except LookupError:
        raise UnknownNameError(
            f"{language!r} is no language that BCP 47 knows.{near_match(language, _known_names())} "
            "Give a tag such as 'sw' or a name such as 'Swahili'."
        ) from None


def language_name(tag: str) -> str:
    """Return the English name of a language: ``"Swahili"`` for ``"sw"``."""
    return langcodes.Language.get(tag).display_name()


def script_name(tag: str) -> str:
    """Return the English name of the script a language is usually written in."""
    likely = langcodes.Language.get(tag).maximize()
    # CLDR calls them "Simplified" and "Traditional"; on their own the words say nothing.
    return "Han" if likely.script in {"Hans", "Hant"} else likely.script_name()


def was_seen(tag: str, encoder: str) -> bool | None:
    """Say whether an encoder's pretraining had text in a language, in the script of its tag.

    Args:
        tag: BCP-47 tag.
        encoder: The encoder's name, for example ``"FacebookAI/xlm-roberta-base"``.

    Returns:
        None for encoders whose languages are not known here.
    """
    languages = _PRETRAINED.get(encoder.rpartition("/")[2])
    if languages is None:
        return None
    known = langcodes.Language.get(tag)
    language = str(known.language)
    usual = known.script is None or language == "zh" or script_name(language) == script_name(tag)
    tags = {tag} | ({language, _FILED.get(language, language)} if usual else set())
    return not tags.isdisjoint(languages.split())


def _known_names() -> list[str]:
    """Return the English names of some two hundred languages; slow, for an error's text."""
    from langcodes.data_dicts import DEFAULT_SCRIPTS, LANGUAGE_ALPHA3

    tags = sorted({*DEFAULT_SCRIPTS, *LANGUAGE_ALPHA3})  # the second: all with a two-letter code
    return [language_name(tag) for tag in tags if langcodes.tag_is_valid(tag)]
