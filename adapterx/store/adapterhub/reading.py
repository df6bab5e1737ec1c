"""Reading: one adapter or fusion of AdapterHub's from a folder, before it meets a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from adapterx.anatomy import Anatomy
from adapterx.errors import FormatError, UnknownNameError
from adapterx.languages import standard_tag
from adapterx.methods import Method
from adapterx.registry import Kind
from adapterx.store.adapterhub.configs import (
    fusion_from_adapterhub,
    methods_from_adapterhub,
    renewed,
)
from adapterx.store.adapterhub.heads import (
    ForeignHead,
    head_from_adapterhub,
    type_of_head,
)
from adapterx.store.adapterhub.layout import family_of, to_our_names, to_their_names
from adapterx.store.archives import check_expansion
from adapterx.store.reading import read_json, read_tensors

__all__ = [
    "ADAPTER",
    "FUSION",
    "HEAD",
    "Files",
    "ForeignAdapter",
    "files_of",
    "kind_of",
    "language_of",
    "read_adapter",
    "read_head",
]


class Files(NamedTuple):
    """The names of one kind of content: its configuration, its weights, and pickled ones."""

    config: str
    weights: str
    pickled: str


ADAPTER: Final = Files("adapter_config.json", "adapter.safetensors", "pytorch_adapter.bin")
FUSION: Final = Files(
    "adapter_fusion_config.json",
    "model_adapter_fusion.safetensors",
    "pytorch_model_adapter_fusion.bin",
)
HEAD: Final = Files("head_config.json", "model_head.safetensors", "pytorch_model_head.bin")


@dataclass(frozen=True, slots=True)
class ForeignAdapter:
    """One adapter, or fusion, as AdapterHub saved it.

    Attributes:
        name: Its name in the file; of a fusion those of its members with commas between.
        kind: As the file says; else ``"task"`` if it has a head that answers.
        facts: The configuration file, in today's words.
        tensors: By AdapterHub's names.
        head: The head saved with it.
        path: The configuration file.
    """

    name: str
    kind: Kind
    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    head: ForeignHead | None
    path: Path

    @property
    def is_fusion(self) -> bool:
        """Whether this is the attention over other adapters."""
        return self.path.name == FUSION.config

    @property
    def language(self) -> str | None:
        """The tag of a language adapter, which AdapterHub names by its language."""
        return language_of(self.name) if self.kind == "language" else None

    def placed(
        self, anatomy: Anatomy, depths: Sequence[int]
    ) -> tuple[tuple[Method, ...], dict[str, Tensor]]:
        """Return its methods, and its tensors by ``site.parameter``.

        Raises:
            FormatError: If a setting has no counterpart here.
        """
        family = family_of(self.facts.get("model_type"), self.path)
        config = self.facts.get("config")
        methods: tuple[Method, ...]
        if self.is_fusion:
            fusion = fusion_from_adapterhub(config, self.tensors, self.path)
            methods = (fusion.resolved(anatomy, depths),)
        else:
            methods = methods_from_adapterhub(
                config, self.tensors, self.name, family, anatomy, depths, self.path
            )
        names = to_their_names(methods, self.name, family, anatomy, depths)
        return methods, _with_values(to_our_names(self.tensors, names), names)


def _with_values(tensors: dict[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Complete a static fusion: it takes the updates as they are, which is a value of ones."""
    for name in names:
        site, _, leaf = name.rpartition(".value.")
        query = tensors.get(f"{site}.query.weight")
        if leaf and name not in tensors and query is not None:
            tensors[name] = torch.eye(len(query))
    return tensors


def read_adapter(folder: Path, *, allow_pickle: bool = False) -> ForeignAdapter:
    """Read an adapter's folder, or a fusion's, with the head in it.

    Args:
        folder: What ``save_adapter`` or ``save_adapter_fusion`` wrote.
        allow_pickle: Read weights that are pickled: tensors alone, nothing that could run.

    Raises:
        FormatError: If it is incomplete or damaged, or pickled without leave.
    """
    files = FUSION if (folder / FUSION.config).is_file() else ADAPTER
    path = folder / files.config
    tensors = {
        _renewed_name(key): value
        for key, value in _read_tensors(folder, files, allow_pickle).items()
    }
    facts = renewed(read_json(path), tensors)
    name = facts.get("name")
    if not isinstance(name, str) or not name:
        raise FormatError(f"{path} has no name of an adapter.")
    kind = kind_of(facts, folder)
    head = None if kind == "language" else read_head(folder, allow_pickle=allow_pickle)
    return ForeignAdapter(name, kind, facts, tensors, head, path)


def files_of(folder: Path) -> list[str]:
    """Return the names of an adapter's files, of which the configurations are there already.

    Those of a head that adapterx leaves in the file are not among them.

    Raises:
        FormatError: If a configuration is damaged, or adapterx has no such head.
    """
    files = FUSION if (folder / FUSION.config).is_file() else ADAPTER
    kind = kind_of(read_json(folder / files.config), folder)
    return [*files, *(HEAD if kind == "task" else (HEAD.config,))]


def language_of(name: str) -> str:
    """Return the tag of a language that an adapter is named by, or the name itself."""
    try:
        return standard_tag(name)
    except UnknownNameError:
        return name


def kind_of(facts: Mapping[str, Any], folder: Path) -> Kind:
    """Return the kind that a configuration says, or that the head beside it tells.

    Raises:
        FormatError: If adapterx has no such head.
    """
    said: dict[str, Kind] = {"text_lang": "language", "text_task": "task"}
    if (word := str(facts.get("type"))) in said:
        return said[word]
    path = folder / HEAD.config
    answers = path.is_file() and type_of_head(read_json(path), path) is not None
    return "task" if answers else "language"


def read_head(folder: Path, *, allow_pickle: bool = False) -> ForeignHead | None:
    """Read the head in a folder; None without one, or if it models language.

    Raises:
        FormatError: As `read_adapter`; also if adapterx has no such head.
    """
    path = folder / HEAD.config
    if not path.is_file():
        return None
    facts = read_json(path)
    named = type_of_head(facts, path)
    if named is None:  # as large as the vocabulary; left alone
        return None
    return head_from_adapterhub(facts, named, _read_tensors(folder, HEAD, allow_pickle), path)


_RENEWED: Final = {
    "attention_text_task_adapters": "adapters",
    "attention_text_lang_adapters": "adapters",
    "layer_text_task_adapters": "adapters",
    "layer_text_lang_adapters": "adapters",
    "invertible_lang_adapters": "invertible_adapters",
}


def _renewed_name(key: str) -> str:
    """Return a tensor's name as the library's versions from 2 on would have it."""
    return ".".join(_RENEWED.get(part, part) for part in key.split("."))


def _read_tensors(folder: Path, files: Files, allow_pickle: bool) -> dict[str, Tensor]:
    if (folder / files.weights).is_file():
        return read_tensors(folder / files.weights)
    path = folder / files.pickled
    if not path.is_file():
        raise FormatError(
            f"There is neither {files.weights} nor {files.pickled} in {folder}. "
            "Fetch or save the adapter again."
        )
    if not allow_pickle:
        raise FormatError(
            f"{path} is pickled, as all files of AdapterHub's older versions. If you trust its "
            "source, pass allow_pickle=True (--allow-pickle): only tensors are read from it."
        )
    check_expansion(path)
    try:
        read = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or forged stream leads to
        raise _damaged(path, error) from error
    if not isinstance(read, Mapping) or not all(isinstance(one, Tensor) for one in read.values()):
        raise _damaged(path, "it holds other things than tensors")
    return {str(key): value for key, value in read.items()}


def _damaged(path: Path, why: object) -> FormatError:
    said = " ".join(str(why).split())[:120]
    return FormatError(f"{path} is damaged ({said}). Fetch or save the adapter again.")
