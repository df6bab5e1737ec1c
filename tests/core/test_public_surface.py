"""The public surface is what `adapterx.__all__` lists, lazily."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import adapterx

SOURCE = Path(adapterx.__file__)


def test_all_is_sorted_and_equals_the_lazy_table() -> None:
    assert adapterx.__all__ == sorted(adapterx._HOME)
    assert len(set(adapterx.__all__)) == len(adapterx.__all__)


def test_type_checkers_see_the_same_names_in_the_same_modules() -> None:
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    (block,) = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    seen = {
        alias.name: statement.module
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert seen == adapterx._HOME


@pytest.mark.parametrize("name", adapterx.__all__)
def test_every_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(adapterx, name)
    module = importlib.import_module(adapterx._HOME[name])
    assert value is getattr(module, name)
    assert name in module.__all__
    documentation = inspect.getdoc(value)
    assert documentation and documentation.splitlines()[0].endswith((".", ":"))


@pytest.mark.parametrize("name", [n for n in adapterx.__all__ if n.islower()])
def test_verbs_take_a_subject_and_then_keywords(name: str) -> None:
    """More than three parameters in a row cannot be read at the call."""
    parameters = inspect.signature(getattr(adapterx, name)).parameters.values()
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert len(positional) <= 3
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters)


def test_dir_lists_every_public_name() -> None:
    assert set(adapterx.__all__) <= set(dir(adapterx))


def test_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'adapterx' has no attribute 'atach'"):
        _ = adapterx.atach


def test_package_is_typed() -> None:
    assert (SOURCE.parent / "py.typed").is_file()


@pytest.mark.parametrize(
    "statement",
    [
        "import adapterx",
        "import adapterx; adapterx.Stack('a'), dir(adapterx), adapterx.__version__",
    ],
)
def test_import_loads_neither_torch_nor_transformers(statement: str) -> None:
    script = f"{statement}\nimport sys\nprint(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=SOURCE.parents[1],
    )
    loaded = {module.split(".")[0] for module in done.stdout.split()}
    heavy = {"torch", "transformers", "peft", "accelerate", "numpy", "huggingface_hub", "rich"}
    assert not loaded & heavy
