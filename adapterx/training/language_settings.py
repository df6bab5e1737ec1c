"""Settings of a run that trains language adapters, as flags or a YAML file say them.

The command line and the recipe read the same keys. Parsing needs neither torch nor transformers.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapterx.composition import check_name
from adapterx.errors import ConfigError, near_match
from adapterx.languages import standard_tag
from adapterx.training.config import LANGUAGE_CONFIG, TrainingConfig
from adapterx.training.settings import add_training_flags, method_from
from adapterx.training.yaml_file import read_yaml

if TYPE_CHECKING:
    from adapterx.methods import Method
    from adapterx.training.objectives.objective import Corpus, Objective

__all__ = ["LanguageSettings", "add_language_flags", "read_corpora", "read_language_settings"]

_FLAGS: Final[Mapping[str, str]] = {
    "model": "e5-small-q4, a folder, or a Hub id",
    "lang": "tag or name of the language; several train at once",
    "name": "name of the new adapter; the tag unless given",
    "text": "text of the language: lines, or a field of JSON lines; LANG=FILE of several",
    "pairs": "translations: .jsonl of {'en': …, 'mi': …}, or news.en.txt::news.mi.txt",
    "field": "of JSON lines that hold text",
    "held_out": "test data: what stands in them is left out of text and pairs",
    "filter": "true to leave out what is surely in another language",
    "objectives": "align (pairs), masked (text), translation (pairs, masked)",
    "masking": "what is hidden as a whole: word, span or piece",
    "mask_share": "of the pieces of a text",
    "negatives": "pieces that the text does not use, in the loss of masked and translation",
    "method": "bottleneck, lora, or a preset such as seq_bn_inv",
    "reduction": "hidden size over the width of a bottleneck",
    "rank": "of a lora",
    "layers": "all, 'upper third', or 8,9,10,11",
    "extend_vocab": "learn at most so many new pieces from the text, and their embeddings",
    "below": "what acts below and stays: a family's adapter, or a composition of some",
    "start": "adapter of a related language whose weights the new ones start from",
    "strength": "at which attach stacks it; 0.5 unless given or chosen",
    "task": "choose the strength under this task: by the texts of like, else on held-out pairs",
    "like": "unlabelled texts of the kind that will be asked, to choose the strength by",
    "dtype": "of the frozen weights",
    "store": "folder of the store; ADAPTERX_HOME unless given",
}
_MANY: Final = ("lang", "text", "pairs", "like", "held_out", "objectives")
_OBJECTIVES: Final = ("align", "masked", "translation")


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageSettings:
    """Which language adapters are trained, with what and on what.

    Attributes:
        lang: Tags of the languages.
        model: Packaged name, folder or Hub id of the encoder.
        name: Name of the adapter, where there is one; the tags otherwise.
        text: Files of text by tag.
        pairs: Files of translations by tag.
        field: Of JSON lines that hold text.
        held_out: Test data whose texts are left out.
        filter: Whether what is surely in another language is left out.
        objectives: How they learn; with none said alignment where there are pairs, else masked
            language modelling.
        masking: What is hidden as a whole.
        mask_share: Share of the pieces that is hidden.
        negatives: Pieces in the loss that the corpus does not use.
        method: As `adapterx.training.settings.method_from` takes it.
        reduction: Reduction factor of a bottleneck.
        rank: Rank of a LoRA.
        layers: Where the adapters act.
        extend_vocab: How many pieces of its own each learns at most; 0 for none.
        below: What acts below them and stays as it is; names in the store.
        start: An adapter in the store whose weights the new ones start from.
        strength: At which `adapterx.attach` stacks them.
        task: Under which the strength is chosen, by `like` or on held-out pairs.
        like: Files of unlabelled texts of the kind that will be asked, by tag.
        dtype: Of the frozen weights.
        store: The store's folder.
        config: The settings of the loop.
    """

    lang: tuple[str, ...]
    model: str = "e5-small-q4"
    name: str | None = None
    text: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    pairs: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    field: str = "text"
    held_out: Sequence[str] = ()
    filter: bool = False
    objectives: tuple[str, ...] = ()
    masking: str = "word"
    mask_share: float = 0.15
    negatives: int = 0
    method: str = "bottleneck"
    reduction: float = 2
    rank: int = 16
    layers: str | Sequence[int] = "all"
    extend_vocab: int = 0
    below: str | None = None
    start: str | None = None
    strength: float | None = None
    task: str | None = None
    like: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    dtype: str = "auto"
    store: str | None = None
    config: TrainingConfig = LANGUAGE_CONFIG

    @property
    def names(self) -> dict[str, str]:
        """The adapters' names by tag."""
        return {tag: self.name or tag for tag in self.lang}

    def build_method(self) -> Method | str:
        """Return the method as `adapterx.add` takes it."""
        return method_from(
            self.method, reduction=self.reduction, rank=self.rank, layers=self.layers
        )

    def build_objectives(self) -> list[Objective]:
        """Return what they learn by.

        Raises:
            ConfigError: If a setting of masking is out of range.
        """
        from adapterx.training.objectives.alignment import Alignment
        from adapterx.training.objectives.masked import MaskedLanguageModelling
        from adapterx.training.objectives.masking import Masking

        masking = Masking(unit=self.masking, share=self.mask_share)  # type: ignore[arg-type]  # it checks the word
        made: dict[str, Objective] = {
            "align": Alignment(),
            "masked": MaskedLanguageModelling(masking=masking, negatives=self.negatives),
            "translation": MaskedLanguageModelling(
                masking=masking, pairs=True, negatives=self.negatives
            ),
        }
        return [made[name] for name in self.objectives]


def add_language_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every key, and ``--config``; none has a default."""
    parser.add_argument("--config", type=Path, help="YAML file of these settings; flags go first")
    defaults = {one.name: one.default for one in dataclasses.fields(LanguageSettings)}
    for name, text in _FLAGS.items():
        default = defaults[name]
        number = isinstance(default, int | float) and not isinstance(default, bool)
        kind: Any = type(default) if number else float if name == "strength" else str
        shown = f"; default {default}" if number or (default and isinstance(default, str)) else ""
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            help=text + shown,
            nargs="+" if name in _MANY else None,
        )
    add_training_flags(parser, LANGUAGE_CONFIG)


def read_language_settings(options: argparse.Namespace) -> LanguageSettings:
    """Return the settings of a configuration file, with the flags over them.

    Raises:
        ConfigError: If the file cannot be read, a key is unknown or missing, or a value is out
            of range.
        DependencyError: If there is a file, but no package to read it with.
    """
    known = {one.name for one in dataclasses.fields(LanguageSettings)} - {"config"}
    loop = {one.name for one in dataclasses.fields(TrainingConfig)}
    given = {} if options.config is None else read_yaml(options.config)
    unknown = [key for key in given if key not in known | loop]
    if unknown:
        raise ConfigError(
            f"There is no setting {unknown[0]!r} for a language."
            f"{near_match(str(unknown[0]), known | loop)}"
        )
    given |= {
        key: value
        for key, value in vars(options).items()
        if value is not None and key in known | loop
    }
    if not given.get("lang"):
        raise ConfigError("lang is not set. Give it in the file or as --lang.")
    tags = tuple(standard_tag(str(one)) for one in _several(given.pop("lang")))
    for key in ("text", "pairs", "like"):
        given[key] = _by_language(key, given.get(key, {}), tags)
    for tag in tags:
        if given["like"] and tag not in given["like"]:
            raise ConfigError(f"like has no file of {tag!r}. Give one for each language.")
        if tag not in given["text"] and tag not in given["pairs"]:
            raise ConfigError(
                f"There is neither text nor pairs of {tag!r}. Give --text FILE or --pairs FILE"
                + (f" as {tag}=FILE." if len(tags) > 1 else ".")
            )
    objectives = tuple(_several(given.pop("objectives", ())))
    wrong = [one for one in objectives if one not in _OBJECTIVES]
    if wrong or len(set(objectives)) != len(objectives):
        raise ConfigError(
            f"objectives are {', '.join(objectives)}. Choose of {', '.join(_OBJECTIVES)}, "
            "each once."
        )
    if given.get("name"):
        check_name(given["name"])
        if len(tags) > 1:
            raise ConfigError("name is set, but there are several languages. Leave it out.")
    if given["like"] and not given.get("task"):
        raise ConfigError("like is set, but no task to choose the strength under. Name one.")
    if given.get("task") and given.get("strength") is not None:
        raise ConfigError("Both strength and task given. The task is there to choose the strength.")
    given["filter"] = {"true": True, "false": False}.get(
        str(given.get("filter", False)).lower(), given.get("filter")
    )
    if not isinstance(given["filter"], bool):
        raise ConfigError(f"filter is {given['filter']!r}. Use true or false.")
    if int(given.get("extend_vocab") or 0) < 0:
        raise ConfigError(
            f"extend_vocab is {given['extend_vocab']}. Give how many pieces are new at most, e.g. "
            "2000, or 0 for none."
        )
    if given.get("extend_vocab") and given.get("start"):
        raise ConfigError(
            "Both extend_vocab and start given, but a relative has no rows for the new pieces. "
            "Leave one out."
        )
    training = {key: given[key] for key in loop if key in given}
    settings = {key: given[key] for key in known if given.get(key) is not None}
    settings["held_out"] = _several(settings.get("held_out", ()))
    return LanguageSettings(
        lang=tags,
        objectives=objectives or (("align",) if given["pairs"] else ("masked",)),
        config=dataclasses.replace(LANGUAGE_CONFIG, **training),
        **settings,
    )


def read_corpora(settings: LanguageSettings) -> tuple[dict[str, Corpus], dict[str, str]]:
    """Read what the adapters learn from, cleaned.

    Returns:
        The corpora by adapter, and what was kept and left out of each file in words.

    Raises:
        DataError: If a file cannot be read, or nothing is left of it.
        ConfigError: If languages shall be told apart and the library is not installed.
    """
    from adapterx.data.corpora import held_texts, read_texts, read_translations
    from adapterx.identification import check_language
    from adapterx.training.objectives.objective import Corpus

    held = held_texts(settings.held_out) if settings.held_out else None
    corpora: dict[str, Corpus] = {}
    told: dict[str, str] = {}
    for tag, name in settings.names.items():
        text, lines = read_texts(
            settings.text.get(tag, ()),
            field=settings.field,
            held=held,
            language=tag if settings.filter else None,
        )
        pairs, translations = read_translations(settings.pairs.get(tag, ()), target=tag, held=held)
        if text:
            check_language(text, tag, f"The text of {name}")
            told[f"{name}: lines"] = str(lines)
        if pairs:
            check_language([pair.target for pair in pairs], tag, f"The pairs of {name}")
            told[f"{name}: pairs"] = str(translations)
        corpora[name] = Corpus(text=text, pairs=pairs)
    return corpora, told


def _several(given: Any) -> list[str]:
    return [given] if isinstance(given, str) else [str(one) for one in given]


def _by_language(key: str, given: Any, tags: Sequence[str]) -> dict[str, list[str]]:
    """Return files by tag: a mapping, ``LANG=FILE``, or plain names where there is one language."""
    if isinstance(given, Mapping):
        found = {standard_tag(str(tag)): _several(files) for tag, files in given.items()}
    else:
        found = {}
        for text in _several(given):
            tag, equals, path = text.partition("=")
            if len(tags) == 1 and not equals:
                found.setdefault(tags[0], []).append(text)
            elif not equals:
                raise ConfigError(f"{text!r} in {key}. Write LANG=FILE for several languages.")
            else:
                found.setdefault(standard_tag(tag), []).append(path)
    others = [tag for tag in found if tag not in tags]
    if others:
        raise ConfigError(
            f"{key} has files of {others[0]!r}, which is not in lang: {', '.join(tags)}."
        )
    return found
