"""sentence-transformers: a first module that encodes each sentence with its language's adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from adapterx.errors import CompositionError, DataError, DependencyError, UnknownNameError
from adapterx.registry import active_on, heads_of, registry_of
from adapterx.store import load, save

try:
    from sentence_transformers.base.modules.module import Module
except ImportError as error:
    raise DependencyError(
        "sentence-transformers is not installed. pip install 'adapterx[sentence-transformers]'"
    ) from error

__all__ = ["AdapterTransformer"]

# A sentence, or one that says its language: {"text": "Habari.", "lang": "sw"}.
Sentence: TypeAlias = str | Mapping[str, str]

_ADAPTERS = "adapters"


class AdapterTransformer(Module):
    """An encoder with adapters as the first module of a ``SentenceTransformer``.

    Stands where sentence-transformers' own ``Transformer`` does; a ``Pooling`` follows. What is
    active on the encoder acts. If rows choose their language in it, every sentence does: as
    ``{"text": ..., "lang": ...}``, or all of a call by ``encode(..., lang=...)``.

    Args:
        model: A bare encoder (``AutoModel``) with adapters.
        tokenizer: Its tokenizer.
        max_seq_length: Pieces after which a text is cut, None for what the tokenizer says.
    """

    forward_kwargs: ClassVar[set[str]] = {"lang"}  # so that `encode` takes it
    save_in_root = True

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_seq_length: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.max_seq_length = max_seq_length

    def preprocess(
        self,
        inputs: Sequence[Sentence],
        prompt: str | None = None,
        lang: str | None = None,
        **_: Any,
    ) -> dict[str, Tensor]:
        """Tokenise sentences.

        Args:
            inputs: Texts, or texts with their language.
            prompt: Put in front of each.
            lang: Language of those that say none.

        Returns:
            What the tokenizer makes of them, and ``lang`` ``(batch,)`` int64 where rows choose.

        Raises:
            CompositionError: If a sentence says no language where one is to be chosen, or one
                where there is no choice.
            DataError: If an input is neither a text nor a text with a language.
            UnknownNameError: If what is active does not know the language.
        """
        if lang is not None and not isinstance(lang, str):
            raise DataError(
                f"lang is {lang!r} in encode, which puts sentences in another order. Give one for "
                'all, or one with each: {"text": ..., "lang": ...}.'
            )
        texts, languages = [], []
        for one in inputs:
            if isinstance(one, str):
                one = {"text": one}
            if not isinstance(one, Mapping) or set(one) - {"lang"} != {"text"}:
                raise DataError(
                    f'{one!r} is no sentence. Give a text, or {{"text": ..., "lang": ...}}.'
                )
            texts.append((prompt or "") + one["text"])
            languages.append(one.get("lang", lang))
        features: dict[str, Tensor] = dict(
            self.tokenizer(
                texts,
                padding=True,
                truncation=True,
                max_length=self.max_seq_length,
                return_tensors="pt",
            )
        )
        keys = self.languages
        if keys:
            features["lang"] = torch.tensor([_index(one, keys) for one in languages])
        elif any(one is not None for one in languages):
            raise CompositionError(
                f"A sentence says its language, but what is active lets none choose: "
                f"{active_on(self.model)}. Attach several: adapterx.attach(model, lang=[...])."
            )
        return features

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages between which sentences choose, empty if they don't."""
        heads, registry = heads_of(self.model), registry_of(self.model)
        gate = heads.gate if heads is not None else registry.gate if registry is not None else None
        return () if gate is None else gate.active.axes.get("lang", ())

    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        """Add ``token_embeddings`` ``(batch, sequence, hidden)`` to what was tokenised."""
        states: Tensor = self.model(**features).last_hidden_state
        return {**features, "token_embeddings": states}

    def get_embedding_dimension(self) -> int:
        """Return the width of the token vectors."""
        width: int = self.model.config.hidden_size
        return width

    def save(self, output_path: str, *args: Any, **settings: Any) -> None:
        """Write encoder, tokenizer and what is active, with its adapters."""
        folder = Path(output_path)
        plain = {
            key: value for key, value in self.model.state_dict().items() if "adapterx" not in key
        }
        self.model.save_pretrained(folder, state_dict=plain)
        self.tokenizer.save_pretrained(folder)
        composition = active_on(self.model)
        if composition is not None:
            save(self.model, composition, folder / _ADAPTERS)

    @classmethod
    def load(
        cls, model_name_or_path: str, subfolder: str = "", **settings: Any
    ) -> AdapterTransformer:
        """Read what `save` wrote."""
        folder = Path(cls.load_dir_path(model_name_or_path, subfolder, **_of_hub(settings)))
        model = AutoModel.from_pretrained(folder, **(settings.get("model_kwargs") or {}))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if (folder / _ADAPTERS).is_dir():
            load(model, folder / _ADAPTERS)
        return cls(model, tokenizer)


def _index(language: str | None, keys: Sequence[str]) -> int:
    if language is None:
        raise CompositionError(
            "A sentence says no language, and what is active lets each choose. Pass "
            f'encode(..., lang=...) or {{"text": ..., "lang": ...}}, of {", ".join(keys)}.'
        )
    if language not in keys:
        raise UnknownNameError(f"No language {language!r} in what is active ({', '.join(keys)}).")
    return keys.index(language)


def _of_hub(settings: Mapping[str, Any]) -> dict[str, Any]:
    known = ("token", "cache_folder", "revision", "local_files_only")
    return {key: settings[key] for key in known if key in settings}
