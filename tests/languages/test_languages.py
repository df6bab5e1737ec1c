"""Languages: one tag for all the ways to write a language, its name and its script."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import adapterx
from adapterx.errors import UnknownNameError
from adapterx.languages import language_name, script_name, standard_tag

# What is written, and the standard tag.
WRITTEN = {
    "sw": "sw",
    "SW": "sw",
    "swa": "sw",
    "Swahili": "sw",
    "swahili": "sw",
    "Māori": "mi",
    "Maori": "mi",
    "mri": "mi",
    "Yoruba": "yo",
    "eng": "en",
    "zh": "zh",
    "zh-Hant": "zh-Hant",
    "zh_hant": "zh-Hant",
    "pt-br": "pt-BR",
    "Hindi": "hi",
    "en-Latn": "en",
    "quc": "quc",
}
# Tag, English name, and the script the language is usually written in.
KNOWN = [
    ("ar", "Arabic", "Arabic"),
    ("en", "English", "Latin"),
    ("hi", "Hindi", "Devanagari"),
    ("ja", "Japanese", "Japanese"),
    ("ko", "Korean", "Korean"),
    ("mi", "Māori", "Latin"),
    ("ru", "Russian", "Cyrillic"),
    ("sr", "Serbian", "Cyrillic"),
    ("sr-Latn", "Serbian (Latin)", "Latin"),
    ("sw", "Swahili", "Latin"),
    ("th", "Thai", "Thai"),
    ("am", "Amharic", "Ethiopic"),
    ("zh", "Chinese", "Han"),
    ("zh-Hant", "Chinese (Traditional)", "Han"),
    ("zh-TW", "Chinese (Taiwan)", "Han"),
]


@pytest.mark.parametrize(("written", "tag"), WRITTEN.items())
def test_a_language_has_one_tag_however_it_is_written(written: str, tag: str) -> None:
    assert standard_tag(written) == tag
    assert standard_tag(tag) == tag


@pytest.mark.parametrize(("tag", "name", "script"), KNOWN, ids=[row[0] for row in KNOWN])
def test_a_tag_has_an_english_name_and_a_script(tag: str, name: str, script: str) -> None:
    assert language_name(tag) == name
    assert script_name(tag) == script
    if "-" not in tag:
        assert standard_tag(name) == tag


@pytest.mark.parametrize(
    ("written", "meant"),
    [("Swahilli", "Swahili"), ("Yourba", "Yoruba"), ("Maaori", "Māori"), ("Englsh", "English")],
)
def test_an_unknown_language_is_named_with_the_nearest_known(written: str, meant: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        standard_tag(written)
    assert str(caught.value) == (
        f"{written!r} is no language that BCP 47 knows. Did you mean {meant!r}? "
        "Give a tag such as 'sw' or a name such as 'Swahili'."
    )


@pytest.mark.parametrize("written", ["", " ", "qqqqqqqqqqqq", "42", "x" * 300, "sw/../sw", "en en"])
def test_what_is_no_language_is_refused(written: str) -> None:
    with pytest.raises(UnknownNameError, match="is no language that BCP 47 knows"):
        standard_tag(written)


@pytest.mark.slow
def test_languages_load_no_torch() -> None:
    code = "import sys; from adapterx.languages import standard_tag; standard_tag('Swahili')"
    code += "; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        cwd=Path(adapterx.__file__).parents[1],
    )
    assert done.stdout.strip() == "False"
