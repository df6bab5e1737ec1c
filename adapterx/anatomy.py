"""Anatomy: where the parts of each model family are, one table row a family.

A row holds dotted module names. Those of `SubLayer`, `projections` and `rowless` are relative to
one layer, the others to the encoder (the model without its head; for an encoder-decoder both).
More than 400 lines because the table is one: a family is read beside those it resembles.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from adapterx.errors import BaseModelError, ConfigError, near_match

__all__ = [
    "PROJECTIONS",
    "Anatomy",
    "Layer",
    "Place",
    "Port",
    "ProjectionSite",
    "Side",
    "SubLayer",
    "anatomy_of",
    "known_families",
    "register_anatomy",
]

Side: TypeAlias = Literal["encoder", "decoder"]
ProjectionSite: TypeAlias = Literal[
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.output",
    "cross_attention.query",
    "cross_attention.key",
    "cross_attention.value",
    "cross_attention.output",
    "ffn.gate",
    "ffn.in",
    "ffn.out",
]
PROJECTIONS: Final[tuple[ProjectionSite, ...]] = (
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.output",
    "cross_attention.query",
    "cross_attention.key",
    "cross_attention.value",
    "cross_attention.output",
    "ffn.gate",
    "ffn.in",
    "ffn.out",
)


@dataclass(frozen=True, slots=True)
class Port:
    """The exact place of one hook: a module, what is updated there, and what is read for it.

    A hook sees positional inputs only: a module whose input is updated or read must get it so.

    Attributes:
        module: Dotted name of the hooked module.
        updates: ``"output"`` (the first of it, if it is a tuple), or the index of the positional
            input that is updated.
        reads: ``"state"``, what is updated, as earlier steps left it; ``"normed"``, the hooked
            layer norm of it; ``"source"``, the first input of `source` (for an updated input: that
            input before any step); ``"ids"``, the token ids given to the hooked embedding, which
            itself sees none beyond its rows: there the state is zeros.
        part: Which of how many equal parts of the output's last dimension is updated, counted
            from 0, where one linear computes several projections: ``(1, 3)`` is the key of a
            fused query, key and value. None for all of it.
        source: The module, called earlier, whose first input is read; None for the hooked one.
        whole: The module around the hooked one that also passes it what has no rows; it is run
            once per group of rows where adapters differ by row. None elsewhere.
    """

    module: str
    updates: Literal["output"] | int = "output"
    reads: Literal["state", "normed", "source", "ids"] = "state"
    part: tuple[int, int] | None = None
    source: str | None = None
    whole: str | None = None

    @property
    def rank(self) -> int:
        """Order of the sites on one module: its own projection, what is after it, what beside."""
        if self.reads not in ("source", "ids"):
            return 1
        return 0 if self.source is None else 2

    @property
    def label(self) -> str:
        """What tells the sites on one module apart; empty for a projection as a whole."""
        if self.part is not None:
            return str(self.part[0])
        return ("", "after", "beside")[self.rank]

    @property
    def key(self) -> str:
        """Name of the site in an encoder: the module's, with the label if there is one."""
        return f"{self.module}:{self.label}" if self.label else self.module


@dataclass(frozen=True, slots=True, kw_only=True)
class SubLayer:
    """One half of a layer, attention or feed-forward.

    Attributes:
        output: Module whose output (or the first of it) is the sub-layer's result, before the
            residual is added; dropped out, where the dropout is a module.
        norm: Post-LN families: the layer norm that reads the residual sum.
        parallel: Where a side branch adds to the sub-layer's result and what it reads there.
    """

    output: str
    norm: str | None = None
    parallel: Port | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """Where one family keeps its parts.

    Attributes:
        layers: The list of layers.
        embeddings: The module whose output is the first hidden state, or the port where a
            module reads it.
        words: The module that turns token ids into vectors, of an encoder alone.
        attention: The attention half of a layer.
        ffn: The feed-forward half of a layer.
        projections: Linear modules by site name, or the port of one that is a part of a linear.
        pooler: What a head reads through, or None.
        unused_positions: Position embeddings that no token gets.
        embedding_size: Name of the configuration's entry that is the width at `embeddings`.
        rowless: A module whose projections are also called on what has no rows of the batch: for
            adapters that differ by row it is to be run once per group of rows. None elsewhere.
        decoder: The decoder's side of an encoder-decoder; this is the encoder's then.
        parts: Children that are the encoder, where a class with a head is its own base model;
            empty where the encoder stands alone.
        otherwise: Another layout of the same model type, for models without this one's modules.
        example: A checkpoint on the Hub.
    """

    layers: str
    embeddings: str | Port
    attention: SubLayer
    ffn: SubLayer
    projections: Mapping[ProjectionSite, str | Port]
    words: str = "embeddings.word_embeddings"
    pooler: str | None = None
    unused_positions: int = 0
    embedding_size: str = "hidden_size"
    rowless: str | None = None
    decoder: Anatomy | None = None
    parts: tuple[str, ...] = ()
    otherwise: Anatomy | None = None
    example: str = ""

    def sides(self) -> tuple[tuple[Side | None, Anatomy], ...]:
        """Return the encoder and the decoder by name; an encoder alone has none."""
        if self.decoder is None:
            return ((None, self),)
        return (("encoder", self), ("decoder", self.decoder))

    def each_layer(self, depths: Sequence[int]) -> Iterator[Layer]:
        """Yield the layers of a model: the encoder's, then the decoder's.

        Args:
            depths: Number of layers of each side; a class without a decoder has one number.
        """
        index = 0
        for (side, part), depth in zip(self.sides(), depths, strict=False):
            for number in range(depth):
                yield Layer(index, number, side, part)
                index += 1

    def first_states(self, depths: Sequence[int]) -> Iterator[Place]:
        """Yield where the first hidden state of each side is."""
        for (side, part), _ in zip(self.sides(), depths, strict=False):
            port = Port(part.embeddings) if isinstance(part.embeddings, str) else part.embeddings
            yield Place("embeddings" if side is None else f"{side}.embeddings", None, port, side)

    def word_embeddings(self) -> Place:
        """Return where token ids become vectors."""
        return Place("word_embeddings", None, Port(self.words, reads="ids"))

    def projection_sites(self) -> tuple[ProjectionSite, ...]:
        """Return the projection sites of either side, in the order of `PROJECTIONS`."""
        there = {site for _, part in self.sides() for site in part.projections}
        return tuple(site for site in PROJECTIONS if site in there)

    def fitted(self, modules: Collection[str]) -> Anatomy:
        """Return this layout, or the first of the others whose modules are all there."""
        return next((row for row in self._layouts() if row._fits(modules)), self)

    def fits(self, modules: Collection[str]) -> bool:
        """Say whether a model with these modules has all those of one of the layouts."""
        return any(row._fits(modules) for row in self._layouts())

    def _layouts(self) -> Iterator[Anatomy]:
        row: Anatomy | None = self
        while row is not None:
            yield row
            row = row.otherwise

    def _fits(self, modules: Collection[str]) -> bool:
        if not all(name in modules for name in self._names()):
            return False
        decoder = self.decoder  # a class may do without: T5's encoder alone
        return decoder is None or f"{decoder.layers}.0" not in modules or decoder._fits(modules)

    def _names(self) -> Iterator[str]:
        """Yield the names of all modules that this side has for its first layer."""
        yield self.embeddings if isinstance(self.embeddings, str) else self.embeddings.module
        values = [*self.projections.values(), self.attention.output, self.ffn.output]
        values += [name for name in (self.attention.norm, self.ffn.norm) if name is not None]
        values += [self.ffn.parallel] if self.ffn.parallel is not None else []
        for value in values:
            yield f"{self.layers}.0.{value if isinstance(value, str) else value.module}"


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a model.

    Attributes:
        index: Its number, counted through the encoder and then the decoder.
        number: Its number on its side.
        side: The side of an encoder-decoder, else None.
        anatomy: Where the parts of this side are.
    """

    index: int
    number: int
    side: Side | None
    anatomy: Anatomy

    def projections(self) -> Iterator[tuple[ProjectionSite, Port]]:
        """Yield the projection sites of the layer and their ports."""
        for site, value in self.anatomy.projections.items():
            yield site, Port(value, reads="source") if isinstance(value, str) else value

    def place(self, site: str, port: Port) -> Place:
        """Return the place of a port of this layer."""
        prefix = f"{self.anatomy.layers}.{self.number}."
        source = None if port.source is None else prefix + port.source
        name = f"layers.{self.number}.{site}"
        rowless = self.anatomy.rowless
        inside = rowless is not None and port.module.startswith(f"{rowless}.")
        whole = f"{prefix}{rowless}" if inside else None
        return Place(
            name if self.side is None else f"{self.side}.{name}",
            self.index,
            replace(port, module=prefix + port.module, source=source, whole=whole),
            self.side,
        )


@dataclass(frozen=True, slots=True)
class Place:
    """Where one module of an adapter goes.

    Attributes:
        site: Stable name, used in saved files: ``"embeddings"``, ``"layers.3.after_ffn"``, in an
            encoder-decoder ``"decoder.layers.3.after_ffn"``.
        layer: Index of the layer, counted through both sides; None outside of the layers.
        port: The hook; its module name is relative to the encoder.
        side: The side of an encoder-decoder, else None.
    """

    site: str
    layer: int | None
    port: Port
    side: Side | None = None

    @property
    def undone(self) -> bool:
        """Whether what acts here is undone before the output embedding: it predicts this side."""
        return self.layer is None and self.side != "encoder" and self.port.reads != "ids"


def _beside(module: str, source: str) -> Port:
    """Return the port of a side branch that reads what `source` reads."""
    return Port(module, reads="source", source=source)


def _part(module: str, index: int, count: int) -> Port:
    return Port(module, reads="source", part=(index, count))


def _cross(module: str, **names: str) -> dict[ProjectionSite, str | Port]:
    """Return the cross-attention's projections, named as those of the self-attention."""
    return {
        "cross_attention.query": f"{module}.{names['query']}",
        "cross_attention.key": f"{module}.{names['key']}",
        "cross_attention.value": f"{module}.{names['value']}",
        "cross_attention.output": f"{module}.{names['output']}",
    }


_BERT: Final = Anatomy(
    example="google-bert/bert-base-multilingual-cased",
    layers="encoder.layer",
    embeddings="embeddings",
    pooler="pooler",
    attention=SubLayer(output="attention.output.dropout", norm="attention.output.LayerNorm"),
    ffn=SubLayer(
        output="output.dropout",
        norm="output.LayerNorm",
        # BertOutput(intermediate, attention_output): its second input is what the FFN read, and
        # goes into the residual sum; adding there adds to the FFN's result.
        parallel=Port("output", updates=1, reads="source"),
    ),
    projections={
        "attention.query": "attention.self.query",
        "attention.key": "attention.self.key",
        "attention.value": "attention.self.value",
        "attention.output": "attention.output.dense",
        "ffn.in": "intermediate.dense",
        "ffn.out": "output.dense",
    },
)
# RoBERTa counts positions from behind the padding index, 1.
_ROBERTA: Final = replace(_BERT, unused_positions=2, example="FacebookAI/roberta-base")
# Narrow embeddings go through a projection of their own; the coupling stands before it, as wide
# as the output embedding that undoes it.
_ELECTRA: Final = replace(
    _BERT,
    pooler=None,
    embedding_size="embedding_size",
    example="google/electra-base-discriminator",
)
_DISTILBERT: Final = Anatomy(
    example="distilbert/distilbert-base-multilingual-cased",
    layers="transformer.layer",
    embeddings="embeddings",
    attention=SubLayer(output="attention", norm="sa_layer_norm"),
    ffn=SubLayer(
        output="ffn.dropout",
        norm="output_layer_norm",
        parallel=Port("ffn", reads="source"),
    ),
    projections={
        "attention.query": "attention.q_lin",
        "attention.key": "attention.k_lin",
        "attention.value": "attention.v_lin",
        "attention.output": "attention.out_lin",
        "ffn.in": "ffn.lin1",
        "ffn.out": "ffn.lin2",
    },
)
_MPNET: Final = replace(
    _BERT,
    attention=SubLayer(output="attention.dropout", norm="attention.LayerNorm"),
    projections={
        "attention.query": "attention.attn.q",
        "attention.key": "attention.attn.k",
        "attention.value": "attention.attn.v",
        "attention.output": "attention.attn.o",
        "ffn.in": "intermediate.dense",
        "ffn.out": "output.dense",
    },
    unused_positions=2,
    example="sentence-transformers/all-mpnet-base-v2",
)
_DEBERTA: Final = replace(
    _BERT,
    pooler=None,  # the head has its own, outside of the encoder
    projections={
        "attention.query": "attention.self.query_proj",
        "attention.key": "attention.self.key_proj",
        "attention.value": "attention.self.value_proj",
        "attention.output": "attention.output.dense",
        "ffn.in": "intermediate.dense",
        "ffn.out": "output.dense",
    },
    # Query and key also project the embeddings of relative positions.
    rowless="attention.self",
    example="microsoft/mdeberta-v3-base",
)
_ALBERT: Final = Anatomy(
    example="albert/albert-base-v2",
    # One list entry is run many times: an adapter there acts in each run.
    layers="encoder.albert_layer_groups",
    embeddings="embeddings",
    embedding_size="embedding_size",
    pooler="pooler",
    attention=SubLayer(
        output="albert_layers.0.attention.output_dropout",
        norm="albert_layers.0.attention.LayerNorm",
    ),
    ffn=SubLayer(
        output="albert_layers.0.ffn_output",
        norm="albert_layers.0.full_layer_layer_norm",
        parallel=_beside("albert_layers.0.ffn_output", "albert_layers.0.ffn"),
    ),
    projections={
        "attention.query": "albert_layers.0.attention.query",
        "attention.key": "albert_layers.0.attention.key",
        "attention.value": "albert_layers.0.attention.value",
        "attention.output": "albert_layers.0.attention.dense",
        "ffn.in": "albert_layers.0.ffn",
        "ffn.out": "albert_layers.0.ffn_output",
    },
)
# Pre-LN: there is no norm after the sum.
_XLM_ROBERTA_XL: Final = replace(
    _ROBERTA,
    attention=SubLayer(output="attention.output.dropout"),
    ffn=SubLayer(output="output.dense", parallel=_beside("output.dense", "intermediate")),
    example="facebook/xlm-roberta-xl",
)
# The language adapters of the model itself stand between the residual sum and the norm, and call
# that norm too. So the site is the sum above them, as a task's adapter stands on a language's.
_XMOD: Final = replace(
    _ROBERTA,
    ffn=SubLayer(output="output", parallel=_beside("output.dense", "intermediate")),
    example="facebook/xmod-base",
)
_GTE: Final = Anatomy(
    example="Alibaba-NLP/gte-multilingual-base",
    layers="layers",
    embeddings="embeddings",
    pooler="pooler",
    attention=SubLayer(output="post_attention_dropout", norm="post_attention_layernorm"),
    ffn=SubLayer(
        output="post_mlp_dropout",
        norm="post_mlp_layernorm",
        parallel=_beside("post_mlp_dropout", "mlp"),
    ),
    projections={
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.output": "self_attn.o_proj",
        "ffn.gate": "mlp.gate_proj",
        "ffn.in": "mlp.up_proj",
        "ffn.out": "mlp.down_proj",
    },
)
_EUROBERT: Final = replace(
    _GTE,
    # The word embedding is not called for `inputs_embeds`; the first layer always is.
    embeddings=Port("layers.0", updates=0),
    words="embed_tokens",
    pooler=None,
    attention=SubLayer(output="self_attn"),
    ffn=SubLayer(output="mlp", parallel=_beside("mlp", "mlp")),
    example="EuroBERT/EuroBERT-210m",
)
_MODERNBERT: Final = Anatomy(
    example="jhu-clsp/mmBERT-base",
    layers="layers",
    embeddings="embeddings",
    words="embeddings.tok_embeddings",
    attention=SubLayer(output="attn.out_drop"),
    ffn=SubLayer(output="mlp", parallel=_beside("mlp", "mlp")),
    projections={
        "attention.query": _part("attn.Wqkv", 0, 3),
        "attention.key": _part("attn.Wqkv", 1, 3),
        "attention.value": _part("attn.Wqkv", 2, 3),
        "attention.output": "attn.Wo",
        "ffn.in": "mlp.Wi",  # with the gate, in one linear
        "ffn.out": "mlp.Wo",
    },
)


def _t5(side: Side, ffn: int, inputs: Mapping[ProjectionSite, str], example: str) -> Anatomy:
    """Return one side of a T5; its `ffn`-th sub-layer is the feed-forward one."""
    names = {"query": "q", "key": "k", "value": "v", "output": "o"}
    inside = f"layer.{ffn}.DenseReluDense"
    return Anatomy(
        example=example,
        layers=f"{side}.block",
        # As in EuroBERT; and the stack's dropout is called twice.
        embeddings=Port(f"{side}.block.0", updates=0),
        attention=SubLayer(output="layer.0.dropout"),
        ffn=SubLayer(
            output=f"layer.{ffn}.dropout", parallel=_beside(f"layer.{ffn}.dropout", inside)
        ),
        projections={
            "attention.query": "layer.0.SelfAttention.q",
            "attention.key": "layer.0.SelfAttention.k",
            "attention.value": "layer.0.SelfAttention.v",
            "attention.output": "layer.0.SelfAttention.o",
            **(_cross("layer.1.EncDecAttention", **names) if side == "decoder" else {}),
            **{site: f"{inside}.{name}" for site, name in inputs.items()},
            "ffn.out": f"{inside}.wo",
        },
        parts=("shared", "encoder", "decoder"),
    )


def _t5_family(inputs: Mapping[ProjectionSite, str], example: str) -> Anatomy:
    return replace(_t5("encoder", 1, inputs, example), decoder=_t5("decoder", 2, inputs, example))


def _t5_layouts(example: str) -> Anatomy:
    """Return the rows of T5: version 1.0 has one linear into the FFN, later ones a gate too."""
    plain = _t5_family({"ffn.in": "wi"}, example)
    return replace(_t5_family({"ffn.gate": "wi_0", "ffn.in": "wi_1"}, example), otherwise=plain)


def _bart(side: Side, embeddings: str | Port) -> Anatomy:
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
    return Anatomy(
        layers=f"{side}.layers",
        embeddings=embeddings,
        # Dropout is no module here; adapters act before it.
        attention=SubLayer(output="self_attn"),
        ffn=SubLayer(output="fc2", parallel=_beside("fc2", "fc1")),
        projections={
            "attention.query": "self_attn.q_proj",
            "attention.key": "self_attn.k_proj",
            "attention.value": "self_attn.v_proj",
            "attention.output": "self_attn.out_proj",
            **(_cross("encoder_attn", **names) if side == "decoder" else {}),
            "ffn.in": "fc1",
            "ffn.out": "fc2",
        },
    )


_MBART: Final = replace(
    _bart("encoder", "encoder.layernorm_embedding"),
    decoder=_bart("decoder", "decoder.layernorm_embedding"),
    example="facebook/mbart-large-50",
)
# With layer drop in training (off in NLLB) a dropped first layer takes the coupling with it.
_M2M_100: Final = replace(
    _bart("encoder", Port("encoder.layers.0", updates=0)),
    decoder=_bart("decoder", Port("decoder.layers.0", updates=0)),
    example="facebook/nllb-200-distilled-600M",
)
# Keys are `config.model_type`. The first row that fits an unknown model is the one offered for it.
_FAMILIES: Final[Mapping[str, Anatomy]] = {
    "bert": _BERT,
    "albert": _ALBERT,
    "camembert": replace(_ROBERTA, example="almanach/camembert-base"),
    "deberta-v2": _DEBERTA,
    "distilbert": _DISTILBERT,
    "electra": _ELECTRA,
    "eurobert": _EUROBERT,
    "gte": _GTE,
    "m2m_100": _M2M_100,
    "mbart": _MBART,
    "modernbert": _MODERNBERT,
    "mpnet": _MPNET,
    "mt5": _t5_layouts("google/mt5-base"),
    "nomic_bert": replace(_GTE, example="nomic-ai/nomic-embed-text-v1.5"),
    "rembert": replace(_BERT, embedding_size="input_embedding_size", example="google/rembert"),
    "roberta": _ROBERTA,
    "roformer": replace(_ELECTRA, example="junnyu/roformer_chinese_base"),
    "t5": _t5_layouts("google-t5/t5-base"),
    "umt5": _t5_layouts("google/umt5-base"),
    "xlm-roberta": replace(_ROBERTA, example="FacebookAI/xlm-roberta-base"),
    "xlm-roberta-xl": _XLM_ROBERTA_XL,
    "xmod": _XMOD,
}
# What users add with `register_anatomy`, and only that.
_REGISTERED: Final[dict[str, Anatomy]] = {}


def known_families() -> tuple[str, ...]:
    """Return the model types that have a row, sorted."""
    return tuple(sorted({**_FAMILIES, **_REGISTERED}))


def anatomy_of(model_type: str, modules: Collection[str] | None = None) -> Anatomy:
    """Return the row of a family.

    Args:
        model_type: What ``model.config.model_type`` says.
        modules: Names of the encoder's modules: they choose among the layouts of one type, and an
            unknown type is told which known one they look like.

    Raises:
        BaseModelError: If there is none: adapterx knows no site in such a model.
    """
    rows = {**_FAMILIES, **_REGISTERED}
    if model_type in rows:
        row = rows[model_type]
        return row if modules is None else row.fitted(modules)
    alike = (name for name, row in rows.items() if modules and row.fits(modules))
    twin = next(alike, None)
    hint = near_match(model_type, rows) + (
        " Say where the parts of another family are: adapterx.register_anatomy(model_type, ...)."
    )
    if twin is not None:
        hint = (
            f" Its modules look like {twin!r}: "
            f"adapterx.register_anatomy({model_type!r}, adapterx.anatomy_of({twin!r}))."
        )
    raise BaseModelError(
        f"adapterx knows no sites in a model of type {model_type!r} "
        f"(known: {', '.join(known_families())}).{hint}"
    )


def register_anatomy(model_type: str, anatomy: Anatomy) -> None:
    """Tell adapterx where the parts of a model family are that it does not know.

    Args:
        model_type: What ``model.config.model_type`` says.
        anatomy: Where the parts are: an `Anatomy` of your own, ``dataclasses.replace`` of a known
            one, or a known one as it is, from `anatomy_of`.

    Raises:
        ConfigError: If the type has another row already.
    """
    known = {**_FAMILIES, **_REGISTERED}.get(model_type)
    if known is not None and known != anatomy:
        raise ConfigError(
            f"The model type {model_type!r} has another anatomy already in register_anatomy. "
            "Give your model's configuration a model_type of its own."
        )
    if known is None:
        _REGISTERED[model_type] = anatomy
