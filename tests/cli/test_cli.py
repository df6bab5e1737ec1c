"""The command line: help, errors of one line, and the main job on a tiny encoder."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

import adapterx
from adapterx.anatomy import known_families
from adapterx.cli import build_parser, main
from adapterx.encoders import load_encoder
from adapterx.errors import AdapterError, DataError

REPOSITORY = Path(adapterx.__file__).parents[1]
LABELS = ("food", "law")
WORDS = {"food": range(8), "law": range(45, 53)}
SETTINGS = [
    *("--epochs", "8", "--batch-size", "8", "--learning-rate", "1e-2"),
    *("--layers", "all", "--reduction", "2", "--dtype", "float32"),
]


def _parsers(parser: Any, *verb: str) -> dict[str, Any]:
    """Return the parser of each verb; of `data` those of its own verbs: `data check`."""
    choices = [action.choices for action in parser._actions if hasattr(action.choices, "items")]
    if not choices:
        return {" ".join(verb): parser}
    below = (_parsers(one, *verb, name) for name, one in choices[0].items())
    return {name: one for parsers in below for name, one in parsers.items()}


VERBS = _parsers(build_parser())


@dataclass
class Answer:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """The one JSON object on stdout."""
        (line,) = self.out.splitlines()
        return json.loads(line)


@dataclass
class World:
    """A folder with a tiny encoder, data, and a store; commands run in it."""

    root: Path
    arguments: dict[str, str] = field(default_factory=dict)

    def write(self, name: str, text: str | bytes) -> str:
        path = self.root / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)


def sentences(count: int, *, offset: int = 0, seed: int = 0) -> list[tuple[str, str]]:
    """Return texts with labels; `offset` shifts the words, as a foreign language would."""
    generator = torch.Generator().manual_seed(seed)
    rows: list[tuple[str, str]] = []
    for index in range(count):
        label = LABELS[index % 2]
        at = torch.randint(8, (3 + index % 3,), generator=generator).tolist()
        rows.append((" ".join(f"w{WORDS[label][i] + offset}" for i in at), label))
    return rows


def _jsonl(rows: Sequence[dict[str, str]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _labelled(rows: Sequence[tuple[str, str]]) -> str:
    return _jsonl([{"text": text, "label": label} for text, label in rows])


def _bert(folder: Path, tokenizer: Any, *, seed: int, hidden: int = 32) -> Path:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=100,
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=37,
        max_position_embeddings=40,
        pad_token_id=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.1,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> World:
    """Write the encoders and the data once."""
    root = tmp_path_factory.mktemp("cli")
    world = World(root)
    _bert(root / "tiny", tokenizer, seed=0)
    (root / "tiny" / "1_Pooling").mkdir()  # as sentence encoders have it: read by the mean
    _bert(root / "other", tokenizer, seed=1)
    _bert(root / "twin" / "tiny", tokenizer, seed=2)
    _bert(root / "wider", tokenizer, seed=0, hidden=64)
    torch.manual_seed(0)
    gpt = GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=40)
    GPT2LMHeadModel(gpt).save_pretrained(root / "gpt")
    tokenizer.save_pretrained(root / "gpt")
    (root / "empty").mkdir()
    english = sentences(64)
    world.write("train.jsonl", _labelled(english))
    world.write("dev.jsonl", _labelled(sentences(24, seed=1)))
    world.write("en.jsonl", _labelled(sentences(24, seed=2)))
    world.write("sw.jsonl", _labelled(sentences(24, offset=20, seed=2)))
    world.write("fr.jsonl", _labelled(sentences(24, offset=10, seed=3)))
    foreign = sentences(64, offset=20)
    for tag in ("mi", "sw"):
        pairs = [
            {"en": text, tag: other} for (text, _), (other, _) in zip(english, foreign, strict=True)
        ]
        world.write(f"en-{tag}.jsonl", _jsonl(pairs))
        world.write(f"{tag}.txt", "".join(text + "\n" for text, _ in foreign[:20]))
    world.write("binary.txt", "abc\0def\n")
    world.write("texts.txt", "w1 w2 w3\n\nw46 w47\n")
    world.write("none.jsonl", "")
    world.write("broken.jsonl", _labelled(english[:2]) + '{"text": "w1", "label":\n')
    world.write("nolabel.jsonl", _labelled(english[:4]) + '{"text": "w1"}\n')
    world.write("other.jsonl", _labelled([*english[:4], ("w1", "fod")]))
    world.write("same.jsonl", _labelled([english[0]] * 3))
    world.write("latin.jsonl", _labelled(english[:2]).encode() + b'{"text": "\xe9", "label": "x"}')
    world.write("few.jsonl", _jsonl([{"en": f"w{i}", "sw": f"w{i + 20}"} for i in range(20)]))
    world.write("three.jsonl", _jsonl([{"en": "w1", "sw": "w2", "fr": "w3"}]))
    world.write("table.txt", "text\tlabel\n")
    return world


@pytest.fixture(autouse=True)
def surroundings(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[pytest.MonkeyPatch]:
    """Run in the world's folder, with an empty store, as a fresh process would."""
    monkeypatch.chdir(world.root)
    monkeypatch.setenv("ADAPTERX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
        monkeypatch.setenv(name, {"TRANSFORMERS_VERBOSITY": "error"}.get(name, "1"))
    before = transformers.logging.get_verbosity()
    # A fresh process reads the verbosity from the environment that `main` sets.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield monkeypatch
    transformers.logging.set_verbosity(before)
    transformers.logging.enable_progress_bar()


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Return ``call("verb --flag …", ...)``: the exit code and what was printed."""

    def call(command: str, *more: str) -> Answer:
        capsys.readouterr()
        code = main([*shlex.split(command), *more])
        out, err = capsys.readouterr()
        return Answer(code, out, err)

    return call


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with a task, ``topics``, and a language adapter, ``sw``, of ``tiny``."""
    store = tmp_path_factory.mktemp("store")
    shared = ["--model", str(world.root / "tiny"), "--store", str(store), *SETTINGS]
    task = ["--task", "topics", "--language", "en"]
    train = ["--train", str(world.root / "train.jsonl")]
    assert main(["train", *shared, *task, *train]) == 0
    pairs = ["--lang", "sw", "--pairs", str(world.root / "en-sw.jsonl"), "--strength", "0.5"]
    assert main(["train-language", *shared, *pairs]) == 0
    return store


# ------------------------------------------------------------------ help


def _help(parser: Any) -> str:
    return str(parser.format_help())


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_exits_with_0_and_ends_in_an_example(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([*verb.split(), "--help"])
    assert left.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    example = " ".join(out.split("example: ")[-1].split())
    assert example.startswith(f"adapterx {verb or 'predict'} ".rstrip())
    options = build_parser().parse_args(shlex.split(example)[1:])
    assert callable(options.run)


def test_families_lists_every_family_with_its_sites(call: Callable[..., Answer]) -> None:
    done = call("families --json")
    rows = {row["type"]: row for row in done.data["families"]}
    assert set(rows) == set(known_families())
    assert rows["bert"] == {
        "type": "bert",
        "encoder_decoder": False,
        "norm": "post",
        "layers": ["encoder.layer"],
        "methods": ["sequential", "double", "parallel", "lora", "invertible"],
        "targets": [f"attention.{name}" for name in ("query", "key", "value", "output")]
        + ["ffn.in", "ffn.out"],
        "example": "google-bert/bert-base-multilingual-cased",
    }
    assert rows["mt5"]["layers"] == ["encoder.block", "decoder.block"]
    assert rows["mt5"]["encoder_decoder"]
    assert {"cross_attention.query", "ffn.gate"} < set(rows["mt5"]["targets"])
    table = call("families").out.splitlines()
    lines = table[1 : len(rows) + 1]
    assert all(line.startswith(name) for line, name in zip(lines, sorted(rows), strict=True))
    assert all(row["example"] in lines[i] for i, row in enumerate(done.data["families"]))
    assert max(map(len, table)) <= 120
    # What the table leaves out is said of all families below it.
    for row in rows.values():
        assert row["methods"] == rows["bert"]["methods"]
        assert {*rows["bert"]["targets"]} <= {*row["targets"]}


def test_show_says_what_is_in_a_saved_composition(
    call: Callable[..., Answer], build, tmp_path: Path
) -> None:
    model = build("bert", "sequence")
    adapterx.add(model, "sw", "seq_bn", kind="language")
    adapterx.add(model, "topics", "lora", labels=LABELS)
    folder = adapterx.save(model, "Stack(Scale(sw, 0.5), topics)", tmp_path / "setup")
    done = call(f"show {folder} --json")
    assert done.data["composition"] == "Stack(Scale(sw, 0.5), topics)"
    assert [card["name"] for card in done.data["adapters"]] == ["sw", "topics"]
    shown = call(f"show {folder}").out
    assert "Stack(Scale(sw, 0.5), topics)" in shown
    assert "food, law" in shown


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_json_and_debug_and_long_options_only(verb: str) -> None:
    flags = [flag for action in VERBS[verb]._actions for flag in action.option_strings]
    assert {"--json", "--debug", "--help"} <= {*flags}
    assert [flag for flag in flags if not flag.startswith("--") and flag != "-h"] == []
    assert "%" not in _help(VERBS[verb])


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"adapterx {adapterx.__version__}\n"


@pytest.mark.slow
def test_help_of_every_verb_loads_no_torch() -> None:
    code = f"""
import sys
from adapterx.cli import main
for verb in {["", *VERBS]!r}:
    try:
        main([*verb.split(), "--help"])
    except SystemExit as left:
        assert left.code == 0, verb
    heavy = {{"torch", "transformers", "accelerate", "numpy", "sklearn"}} & {{*sys.modules}}
    assert not heavy, (verb, heavy)
assert main(["trian"]) == 2
assert "torch" not in sys.modules
"""
    done = _process([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["--version"]], ids=" ".join
)
def test_the_module_runs_as_a_program(arguments: list[str]) -> None:
    done = _process([sys.executable, "-m", "adapterx", *arguments])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(("usage: adapterx", "adapterx "))


def _process(command: list[str], **extra: str) -> subprocess.CompletedProcess[str]:
    removed = ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE")
    kept = {key: value for key, value in os.environ.items() if key not in removed}
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**kept, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", **extra},
    )


# ------------------------------------------------------------------ errors

TRAIN = "train --model tiny --task topics --train train.jsonl"
LEARN = "train-language --model tiny --lang sw --pairs en-sw.jsonl"
PREDICT = "predict --model tiny --task topics"
EVALUATE = "evaluate --model tiny --task topics --test"
# Wrong before anything is loaded: the command, and what the line must hold.
WRONG: dict[str, tuple[str, list[str]]] = {
    "no verb": ("", ["VERB", "See: adapterx --help"]),
    "unknown verb": ("trian", ["no verb 'trian'. Did you mean 'train'?", "See: adapterx --help"]),
    "far verb": ("xyzzy", ["no verb 'xyzzy'. See: adapterx --help"]),
    "missing arguments": ("train", ["task, train are not set.", "--task, --train"]),
    "missing adapter": ("show", ["required: adapter. See: adapterx show --help"]),
    "missing repository": ("push topics", ["USER/REPO"]),
    "unknown option": (f"{PREDICT} --langs sw w1", ["unrecognized arguments: --langs"]),
    "short form of an option": (f"{TRAIN} --epo 3", ["unrecognized arguments: --epo"]),
    "option without value": (f"{TRAIN} --dev", ["--dev: expected at least one argument"]),
    "no number": (f"{TRAIN} --epochs many", ["--epochs", "'many'"]),
    "no number of reduction": (f"{TRAIN} --reduction x", ["--reduction", "'x'"]),
    "unknown choice": (f"{TRAIN} --dtype int8", ["--dtype", "'int8'", "bfloat16"]),
    "bad epochs": (f"{TRAIN} --epochs 0", ["epochs is 0, not a whole number of at least 1"]),
    "bad rate": (f"{TRAIN} --learning-rate -1", ["learning_rate is -1.0"]),
    "bad seed": (f"{TRAIN} --seed -1", ["seed is -1"]),
    "bad schedule": (f"{TRAIN} --schedule linaer", ["schedule is 'linaer', not one of linear"]),
    "two bad settings": (f"{TRAIN} --epochs 0 --keep first", ["epochs is 0", "keep is 'first'"]),
    "bad name": (f"{TRAIN} --task a/b", ["'a/b'"]),
    "bad reduction": (f"{TRAIN} --method bottleneck --reduction 0", ["reduction"]),
    "bad layers": (f"{TRAIN} --layers 1,x", ["layers is '1,x'. Write indices as 8,9,10,11."]),
    "bad layer words": (f"{TRAIN} --layers lower", ["'lower'"]),
    "unknown language": (f"{TRAIN} --language Swahilli", ["'Swahilli'", "Did you mean 'Swahili'?"]),
    "unknown language to learn": (
        "train-language --model tiny --lang Maaori --pairs en-mi.jsonl",
        ["'Maaori' is no language", "Did you mean 'Māori'?"],
    ),
    "unknown language to test": (f"{EVALUATE} Swahilli=sw.jsonl", ["'Swahilli'"]),
    "missing file": (f"{TRAIN} --train gone.jsonl", ["gone.jsonl cannot be read: No such file"]),
    "empty file": (f"{TRAIN} --train none.jsonl", ["none.jsonl is empty"]),
    "wrong ending": (f"{TRAIN} --train table.txt", ["table.txt ends in '.txt'", ".jsonl"]),
    "malformed line": (f"{TRAIN} --train broken.jsonl", ["broken.jsonl, line 3: not JSON"]),
    "missing label": (f"{TRAIN} --train nolabel.jsonl", ["nolabel.jsonl, line 5", "'label'"]),
    "other column": (f"{TRAIN} --text-column body", ["train.jsonl, line 1", "'body'"]),
    "not UTF-8": (f"{TRAIN} --train latin.jsonl", ["latin.jsonl, line 3: not UTF-8"]),
    "one label": (f"{TRAIN} --train same.jsonl", ["All 3 examples have the label 'food'"]),
    "label outside the set": (
        f"{TRAIN} --dev other.jsonl",
        ["other.jsonl, line 5: label 'fod' is not one of food, law.", "Did you mean 'food'?"],
    ),
    "three languages": (
        "train-language --model tiny --lang sw --pairs three.jsonl",
        ["three.jsonl, line 1", "en, sw, fr"],
    ),
    "nothing to learn from": ("train-language --lang sw", ["neither text nor pairs of 'sw'"]),
    "no language to learn": ("train-language --text sw.txt", ["lang is not set"]),
    "text of no language": (
        "train-language --lang sw yo --text sw.txt",
        ["'sw.txt' in text. Write LANG=FILE for several languages."],
    ),
    "text of another language": (
        "train-language --lang sw --text yo=sw.txt",
        ["text has files of 'yo', which is not in lang: sw"],
    ),
    "texts to choose by without a task": (
        f"{LEARN} --like texts.txt",
        ["like is set, but no task to choose the strength under"],
    ),
    "texts to choose by for one of two": (
        "train-language --lang sw mi --text sw=sw.txt mi=mi.txt --task topics --like sw=sw.txt",
        ["like has no file of 'mi'"],
    ),
    "one name for two": (
        "train-language --lang sw yo --text sw=sw.txt yo=sw.txt --name both",
        ["name is set, but there are several languages"],
    ),
    "unknown objective": (f"{LEARN} --objectives alingn", ["Choose of align, masked, translation"]),
    "unknown masking": (f"{LEARN} --masking words", ["masking is 'words'"]),
    "pairs of unequal length": (
        "train-language --lang sw --pairs sw.txt::texts.txt",
        ["sw.txt has 20 lines", "texts.txt has 3"],
    ),
    "binary text": ("train-language --lang sw --text binary.txt", ["line 1", "a zero at byte 3"]),
    "other pairs": (f"{LEARN} --pairs en-mi.jsonl", ["en-mi.jsonl, line 1", "'sw'"]),
    "strength and task": (f"{LEARN} --task topics --strength 1", ["Both strength and task"]),
    "no text": (PREDICT, ["No text to answer"]),
    "blank text": (f"{PREDICT} ' '", ["No text to answer"]),
    "missing texts": (f"{PREDICT} --file gone.txt", ["gone.txt cannot be read"]),
    "language and composition": (f"{PREDICT} --lang sw --compose topics w1", ["Both lang and"]),
    "no LANG=FILE": (f"{EVALUATE} sw.jsonl", ["'sw.jsonl' in --test. Write LANG=FILE"]),
    "neither language nor folder": (f"{EVALUATE} gone", ["'gone' in --test. Write LANG=FILE"]),
    "language given twice": (f"{EVALUATE} sw=a.jsonl Swahili=b.jsonl", ["of sw given twice"]),
    "folder without tests": (
        f"{EVALUATE} empty",
        ["empty holds no data. Name its files by language"],
    ),
    "language not in the folder": (
        f"{EVALUATE} sw=sw.jsonl --languages sv",
        ["No test data of sv in sw=sw.jsonl (there: sw)."],
    ),
    "columns and controls": (
        f"{EVALUATE} sw=sw.jsonl --controls --columns own",
        ["Both columns and controls given"],
    ),
    "few resamples": (f"{EVALUATE} sw=sw.jsonl --resamples 5", ["resamples is 5"]),
    "no answers": (f"{EVALUATE} sw=sw.jsonl --merge sw.jsonl", ["sw.jsonl cannot be read as ans"]),
    "unknown task": (f"{PREDICT} w1", ["No task 'topics' in", "there: none"]),
    "unknown adapter": ("show topics", ["No adapter 'topics' in", "there: none"]),
    "folder without card": ("show empty", ["no adapterx.json in empty"]),
}
# Wrong once a model is loaded.
UNFIT: dict[str, tuple[str, list[str]]] = {
    "no such model": (f"{TRAIN} --model ./gone", ["'./gone' cannot be loaded as an encoder"]),
    "folder without model": (f"{TRAIN} --model empty", ["'empty' cannot be loaded"]),
    "model without sites": (f"{TRAIN} --model gpt", ["gpt2", "bert"]),
    "unknown method": (f"{TRAIN} --method seq_bm", ["'seq_bm'", "Did you mean 'seq_bn'?"]),
    "layers beyond the model": (f"{TRAIN} --layers 8,9", ["layer"]),
    "unknown composition": (f"{TRAIN} --compose Stack(yo,topics)", ["'yo'"]),
    "broken composition": (f"{TRAIN} --compose Stack(yo", ["Stack(yo"]),
    "few pairs": ("train-language --model tiny --lang sw --pairs few.jsonl", ["20 translation pa"]),
}
# Wrong with the store of `trained`.
STORED: dict[str, tuple[str, list[str]]] = {
    "near task": ("predict --model tiny --task topic w1", ["'topic'", "Did you mean 'topics'?"]),
    "near adapter": ("show topisc", ["there: sw, topics", "Did you mean 'topics'?"]),
    "no adapter of the language": (f"{PREDICT} --lang fr w1", ["'fr'", "sw", "fallback"]),
    "nothing to weigh": (f"{PREDICT} --lang fr --weigh w1", ["weigh", "--fallback average"]),
    "no such language": (f"{PREDICT} --lang Swahilli w1", ["'Swahilli'"]),
    "a language for a task": ("predict --model tiny --task sw w1", ["No task 'sw'"]),
    "another base": ("predict --model other --task topics w1", ["another base", "tiny"]),
    "another size": ("predict --model wider --task topics w1", ["hidden size 32, not 64"]),
    "a name that another base has": (f"{TRAIN} --model twin/tiny", ["for another base", "weights"]),
    "empty test": (f"{EVALUATE} sw=none.jsonl", ["none.jsonl is empty"]),
    "unknown column": (
        f"{EVALUATE} sw=sw.jsonl --columns onw",
        ["no column 'onw'", "Did you mean 'own'?"],
    ),
    "unknown column to compare with": (
        f"{EVALUATE} sw=sw.jsonl --against sourc",
        ["no column 'sourc'", "there: task, own"],
    ),
    "unknown setting of the data": (
        f"{EVALUATE} sw=sw.jsonl --set textcolumn=x",
        ["has no setting 'textcolumn'", "Did you mean 'text_column'?"],
    ),
    "half a setting of the data": (
        f"{EVALUATE} sw=sw.jsonl --set text_column",
        ["'text_column' in --set", "KEY=VALUE"],
    ),
    "labels that the head has not": (
        f'{EVALUATE} sw=sw.jsonl --set labels=["a"]',
        ["labels in --set", "leave them out"],
    ),
    "test label outside the set": (f"{EVALUATE} sw=other.jsonl", ["'fod'", "food, law"]),
    "few pairs to hold out": (
        "train-language --model tiny --lang sw --pairs few.jsonl --task topics",
        ["20 translation pairs are too few"],
    ),
    "unknown name in a composition": (f"{PREDICT} --compose Stack(yo,topics) w1", ["'yo'"]),
}


def _check_error(answer: Answer, parts: Sequence[str]) -> None:
    assert answer.code == 2
    assert answer.out == ""
    assert answer.err.endswith("\n")
    (line,) = answer.err.splitlines()
    assert line.startswith("adapterx: ")
    assert "Traceback" not in line
    assert "--debug" not in line  # that is for errors nobody thought of
    assert [part for part in parts if part not in line] == [], line


@pytest.mark.parametrize(("command", "parts"), WRONG.values(), ids=WRONG)
def test_a_wrong_command_is_one_line_on_stderr(
    call: Callable[..., Answer], command: str, parts: list[str]
) -> None:
    _check_error(call(command), parts)


@pytest.mark.parametrize(("command", "parts"), UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit_is_one_line_on_stderr(
    call: Callable[..., Answer], command: str, parts: list[str], tmp_path: Path
) -> None:
    _check_error(call(command), parts)
    assert not list(tmp_path.rglob("adapterx.json"))


@pytest.mark.parametrize(("command", "parts"), STORED.values(), ids=STORED)
def test_what_the_store_lacks_is_one_line_on_stderr(
    call: Callable[..., Answer], trained: Path, command: str, parts: list[str]
) -> None:
    _check_error(call(command, "--store", str(trained)), parts)


@pytest.mark.parametrize(
    "command", [f"{TRAIN} --train broken.jsonl", "trian", TRAIN + " --epochs 0"]
)
def test_with_json_an_error_is_one_object_on_stdout(
    call: Callable[..., Answer], command: str
) -> None:
    plain, answer = call(command), call(f"{command} --json")
    assert answer.code == plain.code == 2
    assert answer.err == plain.err
    assert answer.data.keys() == {"error"}
    assert plain.err == f"adapterx: {answer.data['error']['message']}\n"
    assert answer.data["error"]["type"] in {"DataError", "ConfigError", "AskedWronglyError"}


def test_debug_raises_the_error_with_its_traceback(call: Callable[..., Answer]) -> None:
    with pytest.raises(DataError, match="line 3") as caught:
        call(f"{TRAIN} --train broken.jsonl --debug")
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(AdapterError, match="no verb 'trian'"):
        call("trian --debug")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "parts"),
    [WRONG["malformed line"], UNFIT["model without sites"], STORED["another base"]],
    ids=["malformed line", "model without sites", "another base"],
)
@pytest.mark.parametrize("debug", [False, True], ids=["one line", "debug"])
def test_a_process_of_its_own_says_the_same(
    trained: Path, command: str, parts: list[str], debug: bool
) -> None:
    arguments = [*shlex.split(command), "--store", str(trained), *(["--debug"] if debug else [])]
    done = _process([sys.executable, "-m", "adapterx", *arguments])
    if debug:
        assert done.returncode == 1
        assert "Traceback" in done.stderr
        assert done.stdout == ""
    else:
        _check_error(Answer(done.returncode, done.stdout, done.stderr), parts)


# ------------------------------------------------------------------ the main job


def test_the_main_job_end_to_end(
    call: Callable[..., Answer], world: World, tmp_path: Path, tokenizer: Any
) -> None:
    settings = " ".join(SETTINGS)
    done = call(f"{TRAIN} --language English --dev dev.jsonl {settings}")
    assert done.code == 0
    first, second = done.out.splitlines()
    assert first.startswith("topics: 64 examples, 64 steps, loss ")
    assert "; dev accuracy " in first
    folder = Path(second.removeprefix("saved in "))
    assert folder.is_relative_to(tmp_path / "home" / "adapters")

    done = call("list")
    assert done.code == 0
    (line,) = done.out.splitlines()
    assert line.split() == [
        *("topics", "task", "en", "tiny", "(bert,", "2", "layers", "of", "32),", "2", "labels")
    ]
    shown = call("show topics")
    assert shown.code == 0
    facts = dict(line.split(None, 1) for line in shown.out.splitlines())
    assert facts["name"] == "topics"
    assert facts["language"] == "en"
    assert facts["labels"] == "food, law"
    assert facts["folder"] == str(folder)
    assert "examples 64" in facts["training"]
    assert shown.err == ""
    card = call("show topics --json").data
    assert card["labels"]["names"] == ["food", "law"]
    assert card["facts"]["training"]["seed"] == 0

    plain = call("predict --model tiny --task topics --file texts.txt w3")
    assert plain.code == 0
    assert plain.err == ""
    rows = [line.split(None, 2) for line in plain.out.splitlines()]
    assert [(row[0], row[2]) for row in rows] == [
        ("food", "w3"),
        ("food", "w1 w2 w3"),
        ("law", "w46 w47"),
    ]
    answers = call("predict --model tiny --task topics --file texts.txt --json w3").data
    assert answers["composition"] == "topics"
    assert [one["text"] for one in answers["predictions"]] == ["w3", "w1 w2 w3", "w46 w47"]
    for row, one in zip(rows, answers["predictions"], strict=True):
        assert one["label"] == row[0]
        assert f"{one['score']:.3f}" == row[1]
        assert sum(one["scores"].values()) == pytest.approx(1)

    # The library gives the same answers as the command line.
    model, read = load_encoder(str(world.root / "tiny"))
    adapterx.attach(model, task="topics")
    here = adapterx.predict(model, read, ["w3", "w1 w2 w3", "w46 w47"])
    assert [one["scores"] for one in answers["predictions"]] == [one["scores"] for one in here]

    learnt = call(f"{LEARN} --text sw.txt --task topics {settings} --json")
    assert learnt.code == 0
    assert learnt.err.endswith(" s\n")
    (made,) = learnt.data["adapters"]
    assert made["adapter"] == "sw"
    assert made["strength"] in (0.25, 0.5, 0.75, 1.0)
    assert made["training"]["pairs"] == 64 - 12
    assert made["training"]["lines"] == 20
    assert {*made["training"]["agreement"]} == {"0", "0.25", "0.5", "0.75", "1"}
    listed = call("list --json").data["adapters"]
    assert [(one["name"], one["kind"], one["language"]) for one in listed] == [
        ("sw", "language", "sw"),
        ("topics", "task", "en"),
    ]

    like = call(f"{LEARN} --name like --task topics --like sw.txt {settings} --json").data
    (told,) = like["adapters"]
    assert told["training"]["pairs"] == 64  # none is held out
    chosen = told["training"]["information"]
    assert f"{told['strength']:g}" == max(chosen, key=lambda one: (chosen[one], -float(one)))
    shutil.rmtree(Path(told["folder"]))

    for language in ("sw", "Swahili", "swa"):
        there = call(f"predict --model tiny --task topics --lang {language} --json", "w21 w22").data
        strength = made["strength"]
        name = "sw" if strength == 1 else f"Scale(sw, {strength})"
        assert there["composition"].replace(" ", "") == f"Stack({name}, topics)".replace(" ", "")
        assert there["predictions"][0]["label"] in LABELS
    composed = call("predict --model tiny --task topics --compose Stack(sw,topics) --json w21").data
    assert composed["composition"].replace(" ", "") == "Stack(sw,topics)"
    alone = call("predict --model tiny --task topics --lang fr --fallback none --json w1").data
    assert alone["composition"] == "topics"

    tests = "en=en.jsonl Swahili=sw.jsonl fr=fr.jsonl"
    table = call(f"{EVALUATE} {tests} --output out")
    assert table.code == 0
    assert table.err == ""
    for word in ("English", "Swahili", "French", "task", "own", "Costs"):
        assert word in table.out
    written = {path.name: path for path in (world.root / "out").iterdir()}
    assert {path.split(".")[0] for path in written} == {
        *("answers", "bars", "heatmap", "manifest", "table")
    }
    assert written["bars.png"].read_bytes().startswith(b"\x89PNG")
    assert "Swahili" in written["table.html"].read_text(encoding="utf-8")
    data = call(f"{EVALUATE} {tests} --json").data
    assert data == json.loads(written["table.json"].read_text(encoding="utf-8")) | {
        "columns": data["columns"]  # seconds and memory are each run's own
    }
    assert data["source"] == "en"
    assert list(data["columns"]) == ["task", "own"]
    rows = {row["tag"]: row["cells"] for row in data["rows"]}
    assert next(iter(rows)) == "en"
    assert rows["en"]["task"]["scores"]["accuracy"]["value"] >= 0.9
    assert rows["fr"]["own"] is None
    assert rows["sw"]["own"]["composition"] == there["composition"]
    manifest = json.loads(written["manifest.json"].read_text(encoding="utf-8"))
    assert manifest["adapters"].keys() == {"topics", "sw"}
    assert {tag: one["file"] for tag, one in manifest["tests"].items()} == {
        "en": "en.jsonl",
        "fr": "fr.jsonl",
        "sw": "sw.jsonl",
    }

    text = (world.root / "sw.jsonl").read_text(encoding="utf-8")
    (world.root / "body.jsonl").write_text(text.replace('"text"', '"body"'), encoding="utf-8")
    other = call(f"{EVALUATE} sw=body.jsonl --set text_column=body --json").data
    assert other["rows"][0]["cells"] == rows["sw"]


def test_several_languages_learn_at_once_from_text_and_stand_on_others(
    call: Callable[..., Answer], world: World, tmp_path: Path
) -> None:
    """Masked language modelling, a family below, a warm start: what the store then holds."""
    settings = "--epochs 1 --batch-size 16 --max-length 16"
    both = "train-language --model tiny --lang sw mi --text sw=sw.txt mi=mi.txt --objectives masked"
    made = call(f"{both} {settings} --held-out sw.jsonl --json")
    assert made.code == 0, made.err
    names = [one["adapter"] for one in made.data["adapters"]]
    assert names == ["sw", "mi"]
    for one in made.data["adapters"]:
        assert one["strength"] == 0.5
        assert one["training"]["objectives"][0]["objective"] == "masked language modelling"
        assert one["training"]["perplexity"].keys() == {"before", "after"}
        assert one["training"]["lines"] == 19  # the twentieth measures
    heads = [*(tmp_path / "home").rglob("head.safetensors")]
    assert len(heads) == 1

    start = "train-language --model tiny --lang sw --pairs en-sw.jsonl --text sw.txt"
    more = "--name near --below mi --start sw --objectives align masked translation --batch-size 8"
    near = call(f"{start} {more} --epochs 1 --max-length 16")
    assert near.code == 0, near.err
    assert "near: lines: 20 kept\n" in near.out
    assert "near: pairs: 64 kept\n" in near.out
    assert "perplexity" in near.out
    told = call("show near --json").data
    facts = told["facts"]["training"]
    assert (facts["below"], facts["start"]) == ("mi", "sw")
    assert [one["objective"] for one in facts["objectives"]] == [
        "alignment",
        "masked language modelling",
        "translation language modelling",
    ]


def test_a_task_can_be_trained_on_a_language_adapter(
    call: Callable[..., Answer], trained: Path, world: World
) -> None:
    store = f"--store {trained}"
    done = call(f"{TRAIN} --task news --compose Stack(sw,news) {store} --json {' '.join(SETTINGS)}")
    assert done.code == 0
    assert done.data["training"]["composition"] == "Stack(sw,news)"
    assert Path(done.data["folder"]).is_relative_to(trained)


def test_a_saved_adapter_is_named_by_its_folder_too(
    call: Callable[..., Answer], trained: Path
) -> None:
    by_name = call(f"{PREDICT} --lang sw --store {trained} --json w1").data
    folders = {one.parent.name: one.parent for one in trained.rglob("adapterx.json")}
    by_folder = call(
        f"predict --model tiny --task {folders['topics']} --lang {folders['sw']} --json w1"
    ).data
    assert by_folder == by_name
    assert (
        call(f"show {folders['sw']} --json").data == call(f"show sw --store {trained} --json").data
    )


def test_a_task_on_pairs_reads_both_texts(
    call: Callable[..., Answer], world: World, tmp_path: Path
) -> None:
    rows = [
        {"premise": first, "hypothesis": second, "label": label}
        for (first, label), (second, _) in zip(sentences(32), sentences(32, seed=5), strict=True)
    ]
    data = world.write(
        "pairs.tsv",
        "premise\thypothesis\tlabel\n"
        + "".join(f"{row['premise']}\t{row['hypothesis']}\t{row['label']}\n" for row in rows),
    )
    place = ["--model", str(world.root / "tiny"), "--store", str(tmp_path)]
    columns = ["--text-column", "premise", "--pair-column", "hypothesis"]
    train = ["--task", "nli", "--train", data, "--epochs", "1", *columns]
    assert call("train", *place, *train).code == 0
    ask = ["predict", *place, "--task", "nli", "--json", "w20 w21", "--pair"]
    answer = json.loads(call(*ask, "w22 w23").out)
    other = json.loads(call(*ask, "w40 w41 w42").out)
    assert answer["predictions"][0]["text"] == ["w20 w21", "w22 w23"]
    assert answer["predictions"][0]["scores"] != other["predictions"][0]["scores"]
    wrong = call("predict", *place, "--task", "nli", "w20", "--pair", "w21", "w22")
    assert (wrong.code, wrong.out) == (2, "")
    assert (
        "text-classification was given 2 second texts (--pair). Give one for each text."
        in wrong.err
    )
    wrong = call("predict", *place, "--task", "nli", "w20", "w21", "--pair", "w22")
    assert "1 texts after --pair for 2 before" in wrong.err


def test_a_task_is_trained_beside_translation_pairs(
    call: Callable[..., Answer], world: World, tmp_path: Path
) -> None:
    labels = "".join(
        json.dumps({"text": text, "label": label}) + "\n" for text, label in sentences(32)
    )
    pairs = "".join(
        json.dumps({"en": first, "sw": second}) + "\n"
        for (first, _), (second, _) in zip(sentences(20), sentences(20, seed=5), strict=True)
    )
    train = ["--model", str(world.root / "tiny"), "--store", str(tmp_path), "--task", "aligned"]
    train += ["--train", world.write("labels.jsonl", labels), "--epochs", "1", "--json"]
    align = ["--align", f"sw={world.write('pairs.jsonl', pairs)}", "--align-centred", "true"]
    switch = ["--dictionary", world.write("words.txt", "w20\tw80\n")]
    told = call("train", *train, *align, *switch).data
    (term,) = told["training"]["terms"]
    assert (term["term"], term["pairs"], term["centred"]) == ("consistency", {"sw": 20}, True)
    wrong = call("train", *train, "--align", f"yo={world.write('pairs.jsonl', pairs)}")
    assert wrong.code == 2
    assert "pairs.jsonl, line 1: the fields are en, sw. A pair has 'yo' and one" in wrong.out


def test_test_data_with_other_labels_are_scored_under_a_map(
    call: Callable[..., Answer], world: World, trained: Path
) -> None:
    rows = [(text, {"food": "essen", "law": "2"}[label]) for text, label in sentences(12)]
    rows.append(("w1 w2", "wetter"))
    shared = ["--model", str(world.root / "tiny"), "--store", str(trained), "--task", "topics"]
    test = ["--test", f"de={world.write('de.jsonl', _labelled(rows))}", "--resamples", "100"]
    told = call("evaluate", *shared, *test)
    assert (told.code, "label 'essen' is not one of food, law" in told.err) == (2, True)
    renamed = ["--label-map", "essen=food", "2=law", "wetter=null"]
    done = call("evaluate", *shared, *test, *renamed, "--json")
    assert done.code == 0, done.err
    assert done.data["rows"][0]["examples"] == 12


def test_an_empty_store_lists_nothing(call: Callable[..., Answer], tmp_path: Path) -> None:
    done = call("list")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"no adapters in {tmp_path / 'home' / 'adapters'}\n"
    assert call("list --json").data["adapters"] == []


def test_a_text_may_begin_with_a_dash(call: Callable[..., Answer], trained: Path) -> None:
    done = call(f"{PREDICT} --store {trained} --json --", "--lang", "-5")
    assert [one["text"] for one in done.data["predictions"]] == ["--lang", "-5"]


def test_texts_are_embedded_under_language_and_task(
    call: Callable[..., Answer], trained: Path, tmp_path: Path
) -> None:
    command = f"embed --model tiny --store {trained} --dtype float32 --file texts.txt w5 --json"
    plain = call(command, "--output", str(tmp_path / "plain.npy"))
    assert (plain.code, plain.data["composition"]) == (0, None)
    assert (plain.data["texts"], plain.data["dimensions"]) == (3, 32)
    both = call(f"{command} --lang sw --task topics", "--output", str(tmp_path / "both.npy"))
    assert both.data["composition"] == "Stack(Scale(sw, 0.5), topics)"
    vectors = np.load(tmp_path / "plain.npy"), np.load(tmp_path / "both.npy")
    assert vectors[0].shape == vectors[1].shape == (3, 32)
    assert abs(vectors[0] - vectors[1]).max() > 1e-3
    wrong = call("embed --model tiny --output x.npy")
    assert (wrong.code, wrong.err.count("No text to embed")) == (2, 1)


def test_the_examples_of_help_run(call: Callable[..., Answer], world: World) -> None:
    # The others need the packaged encoder's wheel or a Hub; tests/store has a Hub of its own.
    examples = {
        verb: " ".join(VERBS[verb].epilog.split()).removeprefix("example: adapterx ")
        for verb in ("train", "train-language", "show", "predict", "evaluate", "embed")
    }
    for verb, example in examples.items():
        command = example.replace("e5-small-q4", "tiny")
        if verb == "train-language":  # shown for Māori; predict asks for Swahili
            swahili = command.replace("--lang mi", "--lang sw").replace("en-mi", "en-sw")
            assert call(swahili.replace("mi.txt", "sw.txt"), *SETTINGS).code == 0
        done = call(command, *(SETTINGS if verb.startswith("train") else []))
        assert done.code == 0, done.err
        assert done.out


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
def test_a_closed_pipe_ends_a_command_without_a_word(flags: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("PYTHONUNBUFFERED", None)
    done = subprocess.run(
        [sys.executable, "-m", "adapterx", "list", *flags],
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=300,
        check=False,
        env=environment,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_language_is_centred_listed_and_told(
    call: Callable[..., Answer], world: World, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path / "store")
    store = ["--store", str(tmp_path / "store")]
    model = ["--model", str(world.root / "tiny")]
    lines = "".join(f"{text}\n" for text, _ in sentences(40, offset=3))
    text = world.write("om.txt", lines)
    done = call("centre", *model, "--task", "topics", "--lang", "om", "--text", text, *store)
    assert done.code == 0, done.err
    assert "the mean of om over 40 texts" in done.out
    served = {row["tag"]: row for row in call("languages", *store, "--json").data["languages"]}
    assert served["om"] == {
        "tag": "om",
        "name": "Oromo",
        "script": "Latin",
        "adapters": [],
        "labels": [],
        "centred": ["topics"],
    }
    asked = call("predict", *model, "--task", "topics", "--lang", "om", *store, "--json", "w3 w4")
    assert asked.data["composition"] == "Centred(topics, om)"
    told = call(
        *("predict", *model, "--task", "topics", "--lang", "auto", "--fallback", "none", *store),
        *("--json", "Wachezaji walifanya mazoezi uwanjani jioni.", "w3 w4"),
    )
    assert [one["language"] for one in told.data["predictions"]] == ["sw", "und"]
    assert call("languages", str(tmp_path / "store" / "none")).code == 2


COVERED = {
    "known words": ("w3 w4 w5\n" * 20, "unlearned"),
    "some unknown": ("w3 w4 w5 w6 w7 w8 w9\n" * 19 + "woo w3\n" * 3, "gaps"),
    "unknown words": ("Wachezaji walifanya w3\n" * 20, "unreadable"),
}


@pytest.mark.parametrize(("text", "verdict"), COVERED.values(), ids=COVERED)
def test_coverage_says_what_the_tokenizer_does(
    call: Callable[..., Answer],
    world: World,
    tmp_path: Path,
    text: str,
    verdict: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A name by which the encoder's pretraining is known.
    model = tmp_path / "xlm-roberta-base"
    shutil.copytree(str(world.root / "tiny"), model)
    monkeypatch.chdir(tmp_path)
    found = call(
        *("coverage", "--model", model.name, "--lang", "mos", "--json"),
        *("--text", world.write("mos.txt", text)),
    )
    assert found.code == 0, found.err
    assert found.data["verdict"] == verdict
    assert found.data["seen"] is False
