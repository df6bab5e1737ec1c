"""Settings of a run: what a YAML file and flags may say to train a task.

The command line and the recipe read the same keys. Parsing needs neither torch nor transformers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from adapterx.composition import JsonValue, check_name
from adapterx.errors import ConfigError, near_match
from adapterx.languages import standard_tag
from adapterx.training.config import LEARNING_RATES, TASK_CONFIG, TrainingConfig
from adapterx.training.yaml_file import read_yaml

if TYPE_CHECKING:
    from adapterx.methods import Method
    from adapterx.tasks.task import Task

__all__ = [
    "RunSettings",
    "add_flags",
    "add_training_flags",
    "assignment",
    "method_from",
    "read_settings",
]

_FLAGS: Final[Mapping[str, str]] = {
    "model": "e5-small-q4, a folder, or a Hub id",
    "task": "name of the new adapter",
    "kind": "kind of task, e.g. token-classification",
    "language": "tag of the labels' language",
    "train": "labelled data: a file, folder or hf:user/name, or LANG=FILE for several languages",
    "dev": "labelled data that decide which weights are kept: the same",
    "test": "labelled data to score in the end, a folder or LANG=FILE",
    "mixing": "how several languages share an epoch",
    "mixing_temperature": "1 keeps the sizes, higher ones make them more alike",
    "few_shot": "training examples of each language; 0 for all",
    "stream": "true to read training data line by line, for more than fits into memory",
    "method": "bottleneck, lora, head, full, or a preset such as seq_bn_inv",
    "reduction": "hidden size over the width of a bottleneck",
    "rank": "of a lora",
    "layers": "all, 'upper third', or 8,9,10,11",
    "align": "translation pairs whose sides shall be answered alike: LANG=FILE, .jsonl",
    "align_weight": "of their loss",
    "align_centred": "true to centre the head's input on each batch's language",
    "adversary": "plain text whose language the vectors shall hide: LANG=FILE, two at least",
    "adversary_weight": "of its reversed gradient",
    "dictionary": "bilingual dictionaries to switch words by: files of word, tab, translation",
    "switch_probability": "that a word of the dictionary is switched, above 0 to 1",
    "compose": "what is active in training, e.g. 'Stack(en, topics)'; names in the store",
    "pooling": "how texts are read to classify them",
    "dtype": "of the frozen weights",
    "store": "folder of the store; ADAPTERX_HOME unless given",
    "output": "folder of the new adapter, or model",
    "resume": "true to go on from the newest checkpoint, or the folder of one",
}
_CHOICES: Final[Mapping[str, Sequence[str]]] = {
    "pooling": ("auto", "mean", "model"),
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "mixing": ("concatenate", "temperature", "balanced"),
}
_KIND: Final = "text-classification"
# What transferred best: benchmarks/RESULTS.md.
_METHOD: Final = "lora"
_BY_LANGUAGE: Final = ("align", "adversary")
_MANY: Final = ("train", "dev", "test", *_BY_LANGUAGE)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What is trained, with what and on what.

    Attributes:
        task: Name of the new adapter; names a whole model in what is told.
        train: A file, folder or dataset (``hf:user/name``), or one for each language.
        model: Packaged name, folder or Hub id of the encoder.
        kind: Kind of task, as `adapterx.tasks.TASKS` names it.
        language: Tag of the labels' language, where `train` is one file.
        dev: The same; None for none.
        test: A folder of several languages, or a file for each, scored in the end.
        label_map: New labels by those of the data, None for examples to leave out.
        mixing: How several languages share an epoch: as they are, by temperature, or alike.
        mixing_temperature: Of ``"temperature"``, as `adapterx.data.sampling_shares`.
        few_shot: Training examples of each language, chosen with the seed; 0 for all.
        stream: Whether training data are read line by line at every pass.
        method: ``"bottleneck"``, ``"lora"``, ``"head"`` (the baseline without an adapter),
            ``"full"`` (the baseline that trains the whole model), or a preset.
        reduction: Reduction factor of a bottleneck.
        rank: Rank of a LoRA.
        layers: Where the adapter acts: ``"all"``, ``"upper third"``, or indices.
        align: Translation pairs by the language that is answered as the source sentence is; see
            `adapterx.training.terms.consistency`.
        align_weight: Weight of their loss.
        align_centred: Whether the head's input is centred on each batch's language meanwhile.
        adversary: Plain text by language, from which a language classifier learns that the
            adapter shall mislead; see `adapterx.training.terms.adversarial`.
        adversary_weight: Weight of its reversed gradient.
        dictionary: Files of words and translations, by which training texts are code-switched;
            see `adapterx.training.terms.switching`.
        switch_probability: That a word of the dictionary is switched.
        compose: What is active in training; None for the task alone.
        pooling: As `adapterx.encoders.load_encoder`.
        dtype: The same; a model that trains whole is held in float32.
        store: The store's folder.
        output: Where the adapter goes.
        resume: Whether to go on from the newest checkpoint, or a checkpoint's folder.
        own: The settings of the kind of task itself: columns, class weights.
        config: The settings of the loop.
    """

    task: str
    train: str | Mapping[str, str]
    model: str = "e5-small-q4"
    kind: str = _KIND
    language: str | None = None
    dev: str | Mapping[str, str] | None = None
    test: str | Mapping[str, str] = field(default_factory=dict)
    label_map: Mapping[str, str | None] = field(default_factory=dict)
    mixing: Literal["concatenate", "temperature", "balanced"] = "concatenate"
    mixing_temperature: float = 5.0
    few_shot: int = 0
    stream: bool = False
    method: str = _METHOD
    reduction: float = 16
    rank: int = 16
    layers: str | Sequence[int] = "upper third"
    align: Mapping[str, str] = field(default_factory=dict)
    align_weight: float = 1.0
    align_centred: bool = False
    adversary: Mapping[str, str] = field(default_factory=dict)
    adversary_weight: float = 0.1
    dictionary: str | Sequence[str] = ()
    switch_probability: float = 0.3
    compose: str | None = None
    pooling: str = "auto"
    dtype: str = "auto"
    store: str | None = None
    output: str | None = None
    resume: bool | str = False
    own: Mapping[str, JsonValue] = field(default_factory=dict)
    config: TrainingConfig = TASK_CONFIG

    @property
    def folder(self) -> Path | None:
        """Where checkpoints and logs go: beside the output."""
        return None if self.output is None else Path(f"{self.output}.run")

    @property
    def checkpoint(self) -> bool | Path:
        """`resume` as `adapterx.training.task.train_task` takes it."""
        return Path(self.resume) if isinstance(self.resume, str) else self.resume

    def build_task(self) -> Task[Any]:
        """Return the task, without its labels.

        Raises:
            ConfigError: If the kind or one of its settings is unknown.
        """
        from adapterx.tasks import task_from_json

        return task_from_json({"kind": self.kind, **self.own})

    def build_method(self) -> Method | str | None:
        """Return the method as `adapterx.add` takes it; None where the whole model trains.

        Raises:
            ConfigError: If it is unknown, or a size is out of range.
        """
        if self.method == "full":
            return None
        return method_from(
            self.method, reduction=self.reduction, rank=self.rank, layers=self.layers
        )


def method_from(
    name: str, *, reduction: float, rank: int, layers: str | Sequence[int]
) -> Method | str:
    """Return a method as `adapterx.add` takes it.

    Args:
        name: ``"bottleneck"``, ``"lora"`` or a preset, whose sizes are its own.
        reduction: Reduction factor of a bottleneck.
        rank: Rank of a LoRA.
        layers: Where it acts: ``"all"``, ``"upper third"``, indices, or a text of them.

    Raises:
        ConfigError: If it is unknown, or a size is out of range.
    """
    from adapterx.methods import PRESETS, Bottleneck, LoRA

    where: Any = _layers(layers)
    if name == "bottleneck":
        return Bottleneck(reduction=reduction, layers=where)
    if name == "lora":
        return LoRA(rank=rank, targets="all", layers=where)
    known = ("bottleneck", "full", *PRESETS)
    if name not in PRESETS:
        raise ConfigError(
            f"method is {name!r} (known: {', '.join(sorted(known))}).{near_match(name, known)}"
        )
    return name


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every key, and ``--config`` and ``--set``; none has a default."""
    parser.add_argument("--config", type=Path, help="YAML file of these settings; flags go first")
    defaults = {one.name: one.default for one in dataclasses.fields(RunSettings)}
    for name, text in _FLAGS.items():
        default = defaults[name]
        kind = type(default) if isinstance(default, int | float) else str
        shown = f"; default {default}" if isinstance(default, str | int | float) else ""
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=_truth if kind is bool else kind,
            help=text + shown,
            nargs="+" if name in _MANY or name == "dictionary" else None,
            choices=_CHOICES.get(name),
        )
    for name in ("text", "pair", "label"):
        parser.add_argument(f"--{name}-column", help=f"field of the {name}")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the kind of task"
    )
    add_training_flags(parser, TASK_CONFIG, named="the method's")


def add_training_flags(
    parser: argparse.ArgumentParser, config: TrainingConfig, *, named: str | None = None
) -> None:
    """Add a flag for every setting of the loop.

    Args:
        parser: The parser.
        config: What the help says are the defaults.
        named: What it says of the learning rate in place of a number.
    """
    for one in dataclasses.fields(TrainingConfig):
        value = getattr(config, one.name)
        several = isinstance(value, tuple)
        shown = named if named and one.name == "learning_rate" else value
        parser.add_argument(
            f"--{one.name.replace('_', '-')}",
            type=str if several else type(value),
            nargs="+" if several else None,
            help="" if several else f"default {shown}",
        )


def read_settings(
    options: argparse.Namespace, *, required: Sequence[str] = ("task", "train")
) -> RunSettings:
    """Return the settings of a configuration file, with the flags over them.

    Raises:
        ConfigError: If the file cannot be read, a key is unknown or missing, or a value is out
            of range.
        DependencyError: If there is a file, but no package to read it with.
    """
    known = {one.name for one in dataclasses.fields(RunSettings)} - {"own", "config"}
    loop = {one.name for one in dataclasses.fields(TrainingConfig)}
    flags = {key: value for key, value in vars(options).items() if value is not None}
    given = {} if options.config is None else read_yaml(options.config)
    for key in _MANY:
        if isinstance(given.get(key), dict):
            given[key] = {standard_tag(str(tag)): path for tag, path in given[key].items()}
        if key in flags:
            flags[key] = _files(key, flags[key])
    own = {f"{name}_column" for name in ("text", "pair", "label")}
    given |= {key: value for key, value in flags.items() if key in known | loop | own}
    given |= dict(assignment(text) for text in flags.get("set", ()))
    missing = [key for key in required if not given.get(key)]
    if missing:
        raise ConfigError(
            f"{missing[0]} is not set. Give it in the file or as --{missing[0]}."
            if len(missing) == 1
            else f"{', '.join(missing)} are not set. Give them in the file or as "
            f"{', '.join(f'--{key}' for key in missing)}."
        )
    check_name(given["task"])
    if given.get("method") == "full" and given.get("compose"):
        raise ConfigError("compose is set, but method is 'full', a model without adapters.")
    training = {key: given[key] for key in loop if key in given}
    rate = LEARNING_RATES.get(given.get("method", _METHOD), LEARNING_RATES["bottleneck"])
    settings = {key: given[key] for key in known if given.get(key) is not None}
    _check(settings)
    if "label_map" in settings:
        settings["label_map"] = label_map_of(settings["label_map"])
    if "language" in settings:
        settings["language"] = standard_tag(settings["language"])
    rest = {key: value for key, value in given.items() if key not in known | loop}
    return RunSettings(
        **settings,
        own=_own(settings.get("kind", _KIND), rest, known | loop),
        config=dataclasses.replace(TASK_CONFIG, **{"learning_rate": rate, **training}),
    )


def _layers(given: str | Sequence[int]) -> str | Sequence[int]:
    if not isinstance(given, str) or not given.strip("[ ")[:1].isdigit():
        return given
    try:
        return [int(part) for part in given.strip("[] ").split(",")]
    except ValueError:
        raise ConfigError(f"layers is {given!r}. Write indices as 8,9,10,11.") from None


def _truth(text: str) -> bool | str:
    return {"true": True, "false": False}.get(text.lower(), text)


def _check(settings: Mapping[str, Any]) -> None:
    for key, allowed in _CHOICES.items():
        if settings.get(key, allowed[0]) not in allowed:
            raise ConfigError(f"{key} is {settings[key]!r}. Use {', '.join(allowed)}.")
    for key in ("stream", "align_centred"):
        if not isinstance(settings.get(key, False), bool):
            raise ConfigError(f"{key} is {settings[key]!r}. Use true or false.")
    for key in _BY_LANGUAGE:
        if not isinstance(settings.get(key, {}), Mapping):
            raise ConfigError(f"{key} is {settings[key]!r}. Name a file for each language.")
    for key in ("align_weight", "adversary_weight", "switch_probability"):
        if not isinstance(settings.get(key, 1), int | float) or settings.get(key) is True:
            raise ConfigError(f"{key} is {settings[key]!r}, not a number.")
    count = settings.get("few_shot", 0)
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise ConfigError(f"few_shot is {count!r}, not a whole number of at least 0.")
    if not isinstance(settings.get("label_map", {}), Mapping):
        raise ConfigError(f"label_map is {settings['label_map']!r}. Write OLD: NEW for each label.")


def _label(value: object) -> str:
    """Return a label as data spell it: whole numbers and truth values are no texts in YAML."""
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _files(key: str, given: Sequence[str]) -> str | dict[str, str]:
    if len(given) == 1 and "=" not in given[0]:
        return given[0]
    wrong = [text for text in given if "=" not in text]
    if wrong:
        raise ConfigError(f"{wrong[0]!r} in --{key}. Write LANG=FILE, e.g. sw=sw.jsonl.")
    pairs = (text.split("=", 1) for text in given)
    return {standard_tag(tag): path for tag, path in pairs}


def label_map_of(given: Mapping[Any, Any]) -> dict[str, str | None]:
    """Return a map of labels as texts, which YAML and JSON may have read as numbers."""
    return {_label(old): None if new is None else _label(new) for old, new in given.items()}


def assignment(text: str) -> tuple[str, Any]:
    """Return the key and value of ``KEY=VALUE``; a value that is JSON is read as such.

    Raises:
        ConfigError: If there is no value.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{text!r} in --set. Write KEY=VALUE, e.g. label_column=topic.")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _own(kind: str, rest: Mapping[Any, Any], others: set[str]) -> dict[str, Any]:
    """Return what is left of the keys as settings of the kind of task."""
    if not rest:
        return {}
    from adapterx.tasks import TASKS, task_from_json

    named = TASKS.get(kind)
    fields = {one.name for one in dataclasses.fields(named)} if named else set()  # type: ignore[arg-type]  # tasks are dataclasses
    unknown = [key for key in rest if key not in fields]
    if named and unknown:
        known = fields | others
        raise ConfigError(
            f"There is no setting {unknown[0]!r} for {kind}.{near_match(str(unknown[0]), known)}"
        )
    task_from_json({"kind": kind, **rest})  # an unknown kind, or a value out of range
    return dict(rest)
