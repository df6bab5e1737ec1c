"""Language and task adapters for multilingual encoders: labels in one language, answers in many.

>>> import adapterx
>>> adapterx.attach(model, lang="sw", task="topics")            # doctest: +SKIP
>>> adapterx.predict(model, tokenizer, ["Timu ilishinda."])     # doctest: +SKIP

Importing this package loads neither torch nor transformers; a verb does when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from adapterx.activation import activate, using
    from adapterx.anatomy import Anatomy, SubLayer, anatomy_of, register_anatomy
    from adapterx.attachment import attach
    from adapterx.composition import (
        Average,
        Centred,
        Fuse,
        Parallel,
        PerExample,
        Scale,
        Side,
        Stack,
    )
    from adapterx.errors import AdapterError
    from adapterx.exporting import export_onnx
    from adapterx.merging import merge
    from adapterx.methods.bottleneck import Bottleneck
    from adapterx.methods.fusion import Fusion
    from adapterx.methods.head_only import HeadOnly
    from adapterx.methods.invertible import Invertible
    from adapterx.methods.lora import LoRA
    from adapterx.methods.vocabulary import Vocabulary
    from adapterx.model import add, detach, set_trainable
    from adapterx.neutrality import centre
    from adapterx.overview import Summary, summary
    from adapterx.pooling import MeanPoolingForSequenceClassification
    from adapterx.prediction import predict
    from adapterx.sharing import share
    from adapterx.store import load, pull, push, save
    from adapterx.trainer import AdapterCallback
    from adapterx.vocabulary import learn_vocabulary, tokenizer_of
    from adapterx.weighing import weigh

__version__ = "0.1.0"

_HOME: Final = {
    "AdapterCallback": "adapterx.trainer",
    "AdapterError": "adapterx.errors",
    "Anatomy": "adapterx.anatomy",
    "Average": "adapterx.composition",
    "Bottleneck": "adapterx.methods.bottleneck",
    "Centred": "adapterx.composition",
    "Fuse": "adapterx.composition",
    "Fusion": "adapterx.methods.fusion",
    "HeadOnly": "adapterx.methods.head_only",
    "Invertible": "adapterx.methods.invertible",
    "LoRA": "adapterx.methods.lora",
    "MeanPoolingForSequenceClassification": "adapterx.pooling",
    "Parallel": "adapterx.composition",
    "PerExample": "adapterx.composition",
    "Scale": "adapterx.composition",
    "Side": "adapterx.composition",
    "Stack": "adapterx.composition",
    "SubLayer": "adapterx.anatomy",
    "Summary": "adapterx.overview",
    "Vocabulary": "adapterx.methods.vocabulary",
    "activate": "adapterx.activation",
    "add": "adapterx.model",
    "anatomy_of": "adapterx.anatomy",
    "attach": "adapterx.attachment",
    "centre": "adapterx.neutrality",
    "detach": "adapterx.model",
    "export_onnx": "adapterx.exporting",
    "learn_vocabulary": "adapterx.vocabulary",
    "load": "adapterx.store",
    "merge": "adapterx.merging",
    "predict": "adapterx.prediction",
    "pull": "adapterx.store",
    "push": "adapterx.store",
    "register_anatomy": "adapterx.anatomy",
    "save": "adapterx.store",
    "set_trainable": "adapterx.model",
    "share": "adapterx.sharing",
    "summary": "adapterx.overview",
    "tokenizer_of": "adapterx.vocabulary",
    "using": "adapterx.activation",
    "weigh": "adapterx.weighing",
}

__all__ = [
    "AdapterCallback",
    "AdapterError",
    "Anatomy",
    "Average",
    "Bottleneck",
    "Centred",
    "Fuse",
    "Fusion",
    "HeadOnly",
    "Invertible",
    "LoRA",
    "MeanPoolingForSequenceClassification",
    "Parallel",
    "PerExample",
    "Scale",
    "Side",
    "Stack",
    "SubLayer",
    "Summary",
    "Vocabulary",
    "activate",
    "add",
    "anatomy_of",
    "attach",
    "centre",
    "detach",
    "export_onnx",
    "learn_vocabulary",
    "load",
    "merge",
    "predict",
    "pull",
    "push",
    "register_anatomy",
    "save",
    "set_trainable",
    "share",
    "summary",
    "tokenizer_of",
    "using",
    "weigh",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'adapterx' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)

    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
