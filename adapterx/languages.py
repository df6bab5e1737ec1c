"""Languages: tags, names and scripts, by the `langcodes` library (BCP 47, CLDR)."""

from __future__ import annotations

import langcodes

from adapterx.errors import UnknownNameError, near_match

__all__ = ["language_name", "script_name", "standard_tag"]


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


def _known_names() -> list[str]:
    """Return the English names of some two hundred languages; slow, for an error's text."""
    from langcodes.data_dicts import DEFAULT_SCRIPTS, LANGUAGE_ALPHA3

    tags = sorted({*DEFAULT_SCRIPTS, *LANGUAGE_ALPHA3})  # the second: all with a two-letter code
    return [language_name(tag) for tag in tags if langcodes.tag_is_valid(tag)]
