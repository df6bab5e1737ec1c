"""Folders that a hostile or unlucky sender might give us, and what must hold of each.

``damage(folder, random)`` makes one out of a good folder; ``Bench`` holds a model and a store, and
checks that they withstand it. As a program it does so many times, with bounds on memory that only
a process of its own can have, and ends at the first call that would run code or reach out:

    python fuzzer.py SCRATCH FIRST LAST
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

import adapterx
from adapterx.errors import AdapterError
from adapterx.registry import registry_of
from adapterx.store.local import register, stored

SECONDS = 10.0  # for one folder; a twentieth of that is usual, but machines are shared
BYTES = 1 << 30  # above what the process has when it begins; most folders take a few MB
CARD, CONFIG, SETUP = "adapterx.json", "adapter_config.json", "adapterx_setup.json"
BATCH = {"input_ids": torch.arange(2, 26).reshape(3, 8)}

# Put into JSON in place of any value, as text: some are no JSON.
VALUES = [
    *("null", "true", "-1", "0", "3", "1e308", "1e999", "NaN", "-Infinity", '""', "[]", "{}"),
    *(str(2**31), str(2**40), str(2**63), "9" * 5000, "0.5", "1e-320", '"sw"', '"inf"', "[[]]"),
    *('"../../evil"', '"/etc/passwd"', '"C:\\\\evil"', '"~/evil"', '"a\\u0000b"', '"a\\nb: c"'),
    *('"\\ud800"', '"\\u202ews"', '"ｓｗ"', '"e\\u0301"', '"<script>alert(1)</script>"', '"."'),
    *('"__class__"', '"lambda: 0"', '"' + "x" * 100_000 + '"', '"' + "n" * 250 + '"', '"CON"'),
    *("[" * 10_000 + "]" * 10_000, '{"a":' * 300 + "1" + "}" * 300),
    *("[" + "0," * 50_000 + "0]", "[" + ",".join(f'"l{n}"' for n in range(30_000)) + "]"),
    *('{"a": 1, "a": 2}', '{"method": "lora", "rank": 1099511627776}', '{"method": "head"}'),
    *('[{"method": "bottleneck", "reduction": 1}]', "[0, 1]", "[-1, 99999999]", "[3, 5]"),
]
HOLE = "\0"
PARTS = ("hooks", "values", "facts", "files of the store")


class Canary:
    """Code in a pickle: were it read, there would be a file."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("pickle-was-run",)


def _filled(data: Any, random: Random) -> str:
    """Return JSON text of `data` with one value or key replaced, taken out, or there twice."""
    places: list[tuple[Any, Any]] = []
    below = [data]
    while below:
        value = below.pop()
        if isinstance(value, dict | list):
            keys = list(value) if isinstance(value, dict) else list(range(len(value)))
            places += [(value, key) for key in keys]
            below += [value[key] for key in keys]
    if not places or random.random() < 0.02:
        return random.choice(VALUES)
    holder, key = random.choice(places)
    way = random.random()
    if way < 0.1:
        del holder[key]
    elif way < 0.2 and isinstance(holder, dict):
        holder[random.choice(["", "../x", "a.b", "classifier", "x" * 1000])] = holder.pop(key)
    elif way < 0.3 and isinstance(holder, dict):
        return json.dumps(data).replace(f'"{key}":', f'"{key}": 7, "{key}":', 1)
    elif way < 0.4 and isinstance(holder[key], int | float):
        holder[key] = random.choice([1, 2, -1, 10]) * holder[key] + random.choice([-1, 0, 1])
    else:
        holder[key] = HOLE
    return json.dumps(data).replace(json.dumps(HOLE), random.choice(VALUES))


def _json(file: Path, random: Random) -> None:
    file.write_text(_filled(json.loads(file.read_text()), random))


def _header(file: Path, random: Random) -> None:
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + size].decode()), data[8 + size :]
    if random.random() < 0.2:
        length = random.choice([0, 1, size - 1, size + 8, len(data), 2**31, 2**63, 2**64 - 1])
        file.write_bytes(length.to_bytes(8, "little") + data[8:])
        return
    if random.random() < 0.3:  # ranges that overlap, or tensors larger than any memory
        one, other = random.choices([key for key in header if key != "__metadata__"], k=2)
        header[one]["data_offsets"] = random.choice(
            [header[other]["data_offsets"], [0, 2**50], [-8, 8], [8, 0], [len(rest), len(rest)]]
        )
        header[one]["shape"] = random.choice([[2**48], [2**60, 2**60, 0], [0], [1] * 100, [-1]])
    text = _filled(header, random).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + rest)


def _nan(file: Path, random: Random) -> None:
    data = bytearray(file.read_bytes())
    at = len(data) - 4 * random.randint(1, 20)
    data[at : at + 4] = random.choice([b"\0\0\xc0\x7f", b"\0\0\x80\x7f"])
    file.write_bytes(data)


def _flip(file: Path, random: Random) -> None:
    data = bytearray(file.read_bytes())
    for _ in range(random.choice([1, 3, 20])):
        if data:
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    file.write_bytes(data)


def _cut(file: Path, random: Random) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: random.randint(0, len(data))])


def _grow(file: Path, random: Random) -> None:
    with file.open("r+b") as opened:
        opened.truncate(random.choice([2**20, 2**33, 2**40]))  # sparse: the disk stays empty


def _append(file: Path, random: Random) -> None:
    with file.open("ab") as opened:
        opened.write(random.randbytes(random.randint(1, 100)))


def _small(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.is_file() and path.stat().st_size < 2**20)


def _swap(file: Path, random: Random) -> None:
    other = random.choice(_small(file.parent.iterdir()))
    shutil.copyfile(file, file.with_name("kept"))
    if other != file:
        shutil.copyfile(other, file)
    file.with_name("kept").replace(other)


def _pickle(file: Path, random: Random) -> None:
    file.write_bytes(pickle.dumps({"weight": Canary()}))


def _odd_file(file: Path, random: Random) -> None:
    content = file.read_bytes()
    file.unlink()
    kind = random.choice(["none", "folder", "pipe", "link", "circle", "dangling", "sibling"])
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "link":
        outside = file.parent.parent / f"outside-{file.name}"
        outside.write_bytes(content)
        file.symlink_to(random.choice([outside, Path("/etc/passwd"), Path("/dev/zero")]))
    elif kind == "circle":
        file.symlink_to(file.name)
    elif kind == "dangling":
        file.symlink_to("/nowhere/at/all")
    elif kind == "sibling":  # a link within the folder is fine
        file.with_name("moved").write_bytes(content)
        file.symlink_to("moved")


WAYS: dict[Callable[[Path, Random], None], tuple[str, int]] = {
    _json: (".json", 10),
    _header: (".safetensors", 6),
    _nan: (".safetensors", 1),
    _flip: ("", 3),
    _cut: ("", 2),
    _grow: ("", 1),
    _append: ("", 1),
    _swap: ("", 1),
    _pickle: (".safetensors", 1),
    _odd_file: ("", 2),
}


def damage(folder: Path, random: Random) -> str:
    """Change one to three things in a folder, and say which."""
    told = []
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        (way,) = random.choices(list(WAYS), [weight for _, weight in WAYS.values()])
        files = _small(folder.rglob(f"*{WAYS[way][0]}"))
        if files:
            file = random.choice(files)
            told.append(f"{way.__name__[1:]} {file.relative_to(folder)}")
            try:
                way(file, random)
            except (ValueError, IndexError, TypeError, AttributeError, KeyError, RecursionError):
                told[-1] += " (was damaged already)"
    return ", ".join(told)


class Bench:
    """A model with an adapter of its own and a store; both must withstand every folder."""

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.store = scratch, scratch / "store"
        self.model = self._build()
        self.folders = self._good_folders()
        adapterx.add(self.model, "own", "seq_bn", labels=["a", "b", "c"])
        adapterx.save(self.model, "own", self.store / "base" / "own")
        adapterx.activate(self.model, "own")
        self.loaded = self.refused = 0
        for folder in self.folders:  # what is imported at the first use is imported now
            wrong = self.withstands(folder)
            assert wrong is None, (folder.name, wrong)

    def _build(self) -> Any:
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = BertConfig(vocab_size=100, intermediate_size=64, num_labels=3, **sizes)
        return BertForSequenceClassification(config).eval()

    def _good_folders(self) -> list[Path]:
        model, good = self._build(), self.scratch / "good"
        facts = {"scores": {"en": 0.9, "note": "x"}, "data": ["a", {"b": [1]}]}
        adapterx.add(model, "topics", "par_bn", language="en", labels=["sport", "law"])
        adapterx.add(model, "nli", "lora", labels=["yes", "no", "so"])
        adapterx.add(model, "sw", "seq_bn_inv", kind="language", language="sw")
        adapterx.add(model, "mix", adapterx.Fusion(like=adapterx.Bottleneck()), labels=["p", "q"])
        for name in ("topics", "nli", "sw", "mix"):
            adapterx.save(model, name, good / name, card=facts)
        adapterx.save(model, "Stack(Scale(sw, 0.5), topics)", good / "setup")
        return sorted(good.iterdir())

    def _look(self) -> Any:
        model = self.model
        registry = registry_of(model)
        hooks = [
            (name, [getattr(hook, "__func__", hook) for hook in hooks.values()])
            for name, module in model.named_modules()
            for hooks in (module._forward_hooks, module._forward_pre_hooks)
        ]
        values = [
            (name, id(value), value.requires_grad, value.detach().sum().item())
            for name, value in model.named_parameters()
        ]
        facts = [*model.config.to_dict().items(), adapterx.summary(model), registry.sources.copy()]
        tree = sorted(
            (str(path.relative_to(self.store)), path.read_bytes() if path.is_file() else b"")
            for path in self.store.rglob("*")
        )
        return hooks, values, facts, tree

    def _use(self, folder: Path) -> None:
        """Load a folder and let the model answer with what came of it, then undo that."""
        before = set(registry_of(self.model).adapters)
        try:
            adapterx.load(self.model, folder, force=True)
            with torch.no_grad():
                logits = self.model(**BATCH).logits
            assert logits.shape == (3, self.model.config.num_labels)
            for name in set(registry_of(self.model).adapters) - before:
                with adapterx.using(self.model, name), torch.no_grad():
                    logits = self.model(**BATCH).logits
                    assert logits.shape == (3, self.model.config.num_labels)
            str(adapterx.summary(self.model))
        finally:
            adapterx.activate(self.model, "own")
            for name in set(registry_of(self.model).adapters) - before:
                adapterx.detach(self.model, name)

    def _register(self, folder: Path) -> None:
        places: list[Path] = []
        try:
            places = register(folder, self.store)
        finally:
            list(stored(self.store))
            for place in places:
                assert place.resolve().is_relative_to(self.store.resolve()), place
                shutil.rmtree(place)
                if not any(place.parent.iterdir()):
                    place.parent.rmdir()

    def withstands(self, folder: Path) -> str | None:
        """Return what is wrong with how a folder was taken, None if all is well."""
        for use in (self._use, self._register, lambda folder: list(stored(folder.parent))):
            before, start = self._look(), time.monotonic()
            try:
                use(folder)
                self.loaded += 1
            except AdapterError as error:
                self.refused += 1
                text = str(error)
                if "\n" in text or len(text) > 1000 or not text.isprintable():
                    return f"an error that is no clear line: {text[:2000]!r}"
            except Exception as error:
                return f"{type(error).__name__}: {str(error)[:300]}"
            if time.monotonic() - start > SECONDS:
                return f"it took {time.monotonic() - start:.1f} s"
            for part, was, now in zip(PARTS, before, self._look(), strict=True):
                if was != now:
                    differ = [
                        *(one for one in now if one not in was),
                        *(one for one in was if one not in now),
                    ]
                    return f"{part} have changed: {str(differ)[:300]}"
            if Path("pickle-was-run").exists():
                return "a pickle was read"
        return None

    def run(self, seed: int) -> str | None:
        """Damage one folder and return what is wrong, None if all is well."""
        random = Random(seed)
        place = self.scratch / "received"
        shutil.rmtree(place, ignore_errors=True)
        folder = place / "base" / "adapter"
        good = random.choice(self.folders)
        shutil.copytree(good, folder)
        told = f"{good.name}: {damage(folder, random)}"
        wrong = self.withstands(folder)
        return None if wrong is None else f"seed {seed}, {told}: {wrong}"


def _forbid(event: str, arguments: tuple[Any, ...]) -> None:
    """Let nothing run code, start a process, reach out or write outside of the scratch folder."""
    words = ("exec", "compile", "import", "marshal.", "pickle.", "os.system", "os.exec", "os.fork")
    if event.startswith((*words, "os.posix_spawn", "subprocess.", "socket.", "ctypes.dlopen")):
        os.write(2, f"not allowed: {event} {arguments!r:.300}\n".encode())
        os._exit(3)


def main(scratch: Path, first: int, last: int) -> None:
    """Run the seeds from `first` up to `last`, and print what was wrong as one JSON object."""
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message=".*not finite")
    os.chdir(scratch)
    bench = Bench(scratch)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
    sys.addaudithook(_forbid)
    wrong = [found for seed in range(first, last) if (found := bench.run(seed)) is not None]
    print(json.dumps({"wrong": wrong, "loaded": bench.loaded, "refused": bench.refused}))
    sys.stdout.flush()
    os._exit(0)  # what Python does at its end is none of our business


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
