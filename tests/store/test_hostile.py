"""Folders from anyone: each loads or is one clear error, and nothing else happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzer import CARD, CONFIG, Bench
from safetensors.torch import save_file

import adapterx
from adapterx.errors import AdapterError, FormatError
from adapterx.store.local import register, stored
from adapterx.store.reading import parse_json, read_json, read_tensors

WEIGHTS, HEAD = "adapter_model.safetensors", "head.safetensors"


@pytest.mark.filterwarnings("ignore:.*not finite")
def test_a_few_damaged_folders_are_withstood(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    bench = Bench(tmp_path)
    wrong = [found for seed in range(40) if (found := bench.run(seed)) is not None]
    assert wrong == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="bounds of Linux")
def test_a_thousand_damaged_folders_are_withstood_in_bounded_memory_without_code(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("fuzzer.py")), str(tmp_path), "0", "1000"],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "PYTHONPATH": str(Path(adapterx.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["wrong"] == []
    assert min(told["loaded"], told["refused"]) > 1000  # of three uses of each


# JSON that Python's own reader takes, or fails on in its own ways → what is said of it
JSON = {
    "deep": ("[" * 10_000 + "]" * 10_000, "nested deeper than 256"),
    "deep below Python's limit": ('{"a":' * 300 + "1" + "}" * 300, "nested deeper than 256"),
    "a key twice": ('{"name": "a", "name": "b"}', "the key 'name' is there twice"),
    "no number": ('{"strength": NaN}', "NaN is no finite number"),
    "too large a number": ('{"strength": 1e999}', "1e999 is no finite number"),
    "too large a whole number": ('{"layers": 9007199254740993}', "beyond 2^53"),
    "digits without end": ('{"layers": ' + "9" * 5000 + "}", "beyond 2^53"),
    "half a character": ('{"name": "\\ud800"}', "surrogates not allowed"),
    "no object": ("[1]", "does not hold a JSON object"),
    "no JSON": ("{", "cannot be read as JSON"),
}


@pytest.mark.parametrize("text, message", JSON.values(), ids=JSON)
def test_json_is_read_strictly(tmp_path, text, message) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(FormatError) as caught:
        read_json(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500


def test_json_that_is_fine_is_read_as_python_reads_it(tmp_path) -> None:
    data = {"a": [1, -2.5, 1e-300, 2**53, True, None, "日本\n語"], "b": {"c": {}}}
    assert parse_json(json.dumps(data)) == data
    assert repr(parse_json("[1, 1.0, true]")) == "[1, 1.0, True]"


def _file(header: Any, rest: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + rest


def _tensor(shape: list[Any], start: Any, stop: Any, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


EIGHT = b"\0" * 8
# A safetensors file → what is said of it
TENSORS = {
    "empty": (b"", "header claims"),
    "header beyond the file": (_file({}, length=2**63), "claims 9223372036854775808 bytes"),
    "overlapping ranges": (
        _file({"a": _tensor([2], 0, 8), "b": _tensor([2], 0, 8)}, EIGHT),
        "the range of 'b' begins at 0, not 8",
    ),
    "a gap": (_file({"a": _tensor([1], 4, 8)}, EIGHT), "'a' begins at 4, not 0"),
    "bytes of nobody": (_file({"a": _tensor([1], 0, 4)}, EIGHT), "have 4 bytes, the file 8"),
    "beyond the file": (_file({"a": _tensor([4], 0, 16)}, EIGHT), "have 16 bytes, the file 8"),
    "shape of another size": (_file({"a": _tensor([3], 0, 8)}, EIGHT), "shape of 'a'"),
    "absurd shape": (_file({"a": _tensor([2**50, 2**50, 0], 0, 0)}), "shape of 'a'"),
    "negative shape": (_file({"a": _tensor([-1, -2], 0, 8)}, EIGHT), "shape of 'a'"),
    "shape of truth values": (_file({"a": _tensor([True, 2], 0, 8)}, EIGHT), "shape of 'a'"),
    "dimensions without end": (_file({"a": _tensor([1] * 65, 0, 4)}, EIGHT[:4]), "shape of 'a'"),
    "integers": (_file({"a": _tensor([1], 0, 8, "I64")}, EIGHT), "dtype 'I64', not one of"),
    "unknown dtype": (_file({"a": _tensor([1], 0, 8, "\x1b[31m")}, EIGHT), "dtype '\\x1b[31m'"),
    "no ranges": (_file({"a": {"dtype": "F32", "shape": [2]}}, EIGHT), "facts of 'a'"),
    "a name twice": (
        _file(b'{"a": {"dtype": "F32"}, "a": {"dtype": "F32"}}'),
        "the key 'a' is there twice",
    ),
    "a list": (_file([]), "header is no JSON object"),
    "deep": (_file(b"[" * 10_000), "damaged"),
}


@pytest.mark.parametrize("content, message", TENSORS.values(), ids=TENSORS)
def test_a_header_that_does_not_describe_its_file_is_refused(tmp_path, content, message) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        read_tensors(path)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite_are_read_and_warned_of(tmp_path, dtype) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"b": torch.tensor([[1, torch.nan]], dtype=dtype), "c": torch.zeros(0, dtype=dtype)}
    save_file({**tensors, "d": torch.tensor(torch.inf, dtype=dtype)}, path)
    with pytest.warns(UserWarning, match=r"not finite in 2 of 3 tensors \(b\)"):
        read = read_tensors(path)
    assert torch.equal(read["b"].isnan(), tensors["b"].isnan())


@pytest.fixture
def saved(build, tmp_path) -> Path:
    """The folder of a task with its head."""
    model = build("bert", "sequence")
    adapterx.add(model, "nli", "seq_bn", labels=["no", "yes"])
    return adapterx.save(model, "nli", tmp_path / "base" / "nli")


def _link(target: Callable[[Path], Path]) -> Callable[[Path], None]:
    def link(file: Path) -> None:
        there = target(file)
        content = file.read_bytes()
        file.unlink()
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(content)
        file.symlink_to(there)

    return link


def _circle(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _large(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.truncate(2**40)


ODD_FILES = {
    "link out": (_link(lambda file: file.parents[2] / "elsewhere"), "leads out of its folder"),
    "link to a neighbour's": (
        _link(lambda file: file.parents[1] / "other" / file.name),
        "leads out of its folder",
    ),
    "circle": (_circle, "cannot be read"),
    "pipe": (_pipe, "is no file"),
    "device": (lambda file: (file.unlink(), file.symlink_to("/dev/zero")), "is no file"),
    "folder": (lambda file: (file.unlink(), file.mkdir()), "is no file"),
    "too large": (_large, "at most"),
}


@pytest.mark.parametrize("change, message", ODD_FILES.values(), ids=ODD_FILES)
@pytest.mark.parametrize("name", [CARD, CONFIG, WEIGHTS, HEAD])
def test_only_files_of_the_folder_are_read(build, saved, tmp_path, name, change, message) -> None:
    change(saved / name)
    model, start = build("bert", "sequence"), time.monotonic()
    for use in (lambda: adapterx.load(model, saved), lambda: register(saved, tmp_path / "store")):
        with pytest.raises(FormatError) as caught:
            use()
        assert message in str(caught.value)
        assert name in str(caught.value)
    assert time.monotonic() - start < 5
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("shared", [False, True], ids=["blobs", "shared blobs"])
@pytest.mark.parametrize("under", [".", "adapters/nli"])
def test_links_of_hugging_faces_cache_are_followed(build, saved, tmp_path, shared, under) -> None:
    """As huggingface_hub lays it out, of 1.0 and of 2.4 with the store all repositories share."""
    repository = tmp_path / "hub" / "models--alice--nli"
    folder = repository / "snapshots" / ("0" * 40) / under
    folder.mkdir(parents=True)
    blobs, common = repository / "blobs", tmp_path / "hub" / "blobs" / "ab"
    blobs.mkdir()
    common.mkdir(parents=True)
    for index, file in enumerate(sorted(saved.iterdir())):
        blob = common / str(index) if shared else blobs / str(index)
        blob.write_bytes(file.read_bytes())
        if shared:
            (blobs / str(index)).symlink_to(os.path.relpath(blob, blobs))
        (folder / file.name).symlink_to(os.path.relpath(blobs / str(index), folder))
    model = adapterx.load(build("bert", "sequence"), folder)
    assert [row.name for row in adapterx.summary(model).adapters] == ["nli"]
    (place,) = register(folder, tmp_path / "store")
    assert {path.name: path.read_bytes() for path in place.iterdir()} == {
        path.name: path.read_bytes() for path in saved.iterdir()
    }
    assert not any(path.is_symlink() for path in place.iterdir())


def _card(folder: Path, **changes: Any) -> None:
    data = json.loads((folder / CARD).read_text())
    base = {**data["base"], **changes.pop("base", {})}
    (folder / CARD).write_text(json.dumps({**data, **changes, "base": base}))


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/evil", "a/b", "a\\b", "..", "", "a.b", "a\nb", "n" * 201, "a b", "\0"]
)
def test_a_name_is_never_a_path(build, saved, tmp_path, name) -> None:
    _card(saved, name=name)
    for use in (
        lambda: adapterx.load(build("bert", "sequence"), saved),
        lambda: register(saved, tmp_path / "store"),
    ):
        with pytest.raises(AdapterError, match="cannot name an adapter"):
            use()
    assert list(stored(saved.parent)) == []
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", ["..", "../../evil", "/evil", "a\\..\\b", "n" * 255, "ไทย" * 80])
def test_the_name_of_a_base_is_never_a_path(saved, tmp_path, name) -> None:
    _card(saved, base={"name": name})
    (place,) = register(saved, tmp_path / "store")
    assert place.parent.parent.resolve() == (tmp_path / "store").resolve()
    assert [card.base.name for _, card in stored(tmp_path / "store")] == [name]


@pytest.mark.parametrize(
    "change",
    [
        {"labels": {"names": [f"l{n}" for n in range(100_000)], "problem": None}},
        {"labels": {"names": [], "problem": None}},
    ],
    ids=["labels without end", "no labels"],
)
def test_a_card_that_claims_other_sizes_allocates_nothing(build, saved, change) -> None:
    _card(saved, **change)
    with pytest.raises(AdapterError, match="'nli'"):
        adapterx.load(build("bert", "sequence"), saved)


def test_settings_that_claim_other_sizes_allocate_nothing(build, saved) -> None:
    """Matrices that would have a hundred gigabytes; they are compared with the file's first."""
    settings = {"method": "lora", "rank": 2**20, "targets": "all"}
    (saved / CONFIG).write_text(json.dumps({"methods": [settings]}))
    with pytest.raises(AdapterError, match="do not fit"):
        adapterx.load(build("bert", "sequence"), saved)


def test_what_is_pulled_again_takes_the_place_of_the_former(build, saved, tmp_path) -> None:
    (place,) = register(saved, tmp_path / "store")
    (place / "extra").write_text("of a former one")
    assert register(saved, tmp_path / "store") == [place]
    assert {path.name for path in place.iterdir()} == {path.name for path in saved.iterdir()}
    before = {path: path.read_bytes() for path in place.iterdir()}
    (saved / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:-4])
    with pytest.raises(FormatError, match="damaged"):
        register(saved, tmp_path / "store")
    assert {path: path.read_bytes() for path in place.iterdir()} == before
