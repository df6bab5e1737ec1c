"""A Hugging Face `Trainer` with our callback keeps, resumes and reloads what trains."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

import adapterx
from adapterx import Bottleneck, LoRA, MeanPoolingForSequenceClassification, Stack
from adapterx.errors import ConfigError

STEPS = 8
EVERY = 2
METHODS = {"bottleneck": Bottleneck(dropout=0.2), "lora": LoRA(dropout=0.2), "head": "head"}


class _Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __init__(self, batch: dict[str, Tensor]) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch["input_ids"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = {key: value[index] for key, value in self.batch.items()}
        return {**row, "labels": torch.tensor(index % 3)}


@pytest.fixture
def attach_to() -> Any:
    """Return ``attach_to(model, method, seed)``: a fresh task trains over a frozen language."""

    def attach_to(model: Any, method: Any = "bottleneck", seed: int = 0) -> Any:
        torch.manual_seed(3)
        adapterx.add(model, "sw", "seq_bn", kind="language")
        torch.manual_seed(seed)
        adapterx.add(model, "nli", METHODS[method], labels=["no", "yes", "perhaps"])
        adapterx.activate(model, Stack("sw", "nli"))
        return adapterx.set_trainable(model, "nli")

    return attach_to


@pytest.fixture
def trainer_of(make_batch, tmp_path) -> Any:
    """Return ``trainer_of(model, ...)``: eight steps, a checkpoint every second one."""

    def trainer_of(model: Any, folder: str = "run", **settings: Any) -> Trainer:
        arguments = TrainingArguments(
            output_dir=str(tmp_path / folder),
            max_steps=STEPS,
            per_device_train_batch_size=4,
            learning_rate=0.02,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
            save_steps=EVERY,
            logging_steps=1,
            **settings,
        )
        rows = _Rows(make_batch(rows=12))
        evaluated = rows if "eval_strategy" in settings else None
        return Trainer(
            model,
            arguments,
            train_dataset=rows,
            eval_dataset=evaluated,
            callbacks=[adapterx.AdapterCallback()],
        )

    return trainer_of


def _trained(model: Any) -> dict[str, Tensor]:
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def _losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_checkpoints_hold_what_trains(build, attach_to, trainer_of, tmp_path) -> None:
    model = attach_to(build(kind="sequence", dropout=0.1))
    trainer_of(model).train()
    for step in range(EVERY, STEPS + 1, EVERY):
        checkpoint = tmp_path / "run" / f"checkpoint-{step}"
        tensors = load_file(checkpoint / "model.safetensors")
        assert tensors.keys() == _trained(model).keys()
        assert sorted(path.name for path in (checkpoint / "adapters").iterdir()) == ["nli"]
    assert _equal(tensors, _trained(model))
    assert any("classifier" in name for name in tensors)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family, kind", [("bert", "sequence"), ("modernbert", "mean")])
def test_resumed_run_ends_as_the_uninterrupted_one(
    build, attach_to, trainer_of, tmp_path, caplog, family, kind, method
) -> None:
    whole = attach_to(build(family, kind, dropout=0.1), method)
    trainer = trainer_of(whole)
    trainer.train()
    resumed = attach_to(build(family, kind, dropout=0.1), method, seed=1)
    assert not _equal(_trained(resumed), _trained(whole))
    with caplog.at_level(logging.WARNING, "transformers"):
        again = trainer_of(resumed, "again")
        again.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{STEPS // 2}"))
    assert not [record for record in caplog.records if "keys in the checkpoint" in record.message]
    assert _losses(again) == _losses(trainer)
    assert _equal(_trained(resumed), _trained(whole))


@pytest.mark.parametrize("kind", [AutoModelForSequenceClassification, "mean"])
def test_run_on_a_loaded_base_can_be_resumed(build, attach_to, trainer_of, tmp_path, kind) -> None:
    """A class with other names than the file's: checkpoints go by the model's."""
    build(kind="sequence").save_pretrained(tmp_path / "base")
    loader = MeanPoolingForSequenceClassification if kind == "mean" else kind
    whole = attach_to(loader.from_pretrained(tmp_path / "base"))
    conversions = copy.copy(whole._weight_conversions)
    trainer_of(whole).train()
    assert whole._weight_conversions == conversions
    resumed = attach_to(loader.from_pretrained(tmp_path / "base"), seed=1)
    trainer_of(resumed, "again").train(
        resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{EVERY}")
    )
    assert _equal(_trained(resumed), _trained(whole))


def test_best_checkpoint_is_reloaded_and_loads_elsewhere(
    build, attach_to, trainer_of, tmp_path, batch, run, same
) -> None:
    model = attach_to(build(kind="sequence"))
    trainer = trainer_of(
        model,
        eval_strategy="steps",
        eval_steps=EVERY,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        # The lowest loss of what learns is the last; the highest is not.
        greater_is_better=True,
        save_total_limit=1,
    )
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name != f"checkpoint-{STEPS}"
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == [best.name]
    assert _equal(_trained(model), load_file(best / "model.safetensors"))
    model.eval()
    elsewhere = attach_to(build(kind="sequence"), seed=1)
    adapterx.activate(elsewhere, "sw")
    adapterx.detach(elsewhere, "nli")
    adapterx.load(elsewhere, best / "adapters" / "nli")
    adapterx.activate(elsewhere, Stack("sw", "nli"))
    assert same(run(elsewhere, batch), run(model, batch))


def test_after_training_a_model_is_saved_whole(build, attach_to, trainer_of, tmp_path) -> None:
    model = attach_to(build(kind="sequence"))
    trainer = trainer_of(model)
    model.save_pretrained(tmp_path / "before")
    assert load_file(tmp_path / "before/model.safetensors").keys() == _trained(model).keys()
    trainer.train()
    model.save_pretrained(tmp_path / "after")
    assert load_file(tmp_path / "after/model.safetensors").keys() == model.state_dict().keys()


def test_plain_models_are_saved_whole_although_a_trainer_waits(
    build, attach_to, trainer_of, tmp_path
) -> None:
    model = attach_to(build(kind="sequence"), "lora")
    trainer_of(model)
    merged = adapterx.merge(model, "nli")
    for plain in (merged, adapterx.detach(model)):
        plain.save_pretrained(tmp_path / "plain")
        tensors = load_file(tmp_path / "plain/model.safetensors")
        assert tensors.keys() == build(kind="sequence").state_dict().keys()


@pytest.mark.parametrize("names", [(), None])
def test_trainer_without_an_adapter_that_trains_is_refused(
    build, attach_to, trainer_of, names
) -> None:
    model = build(kind="sequence")
    if names is not None:
        adapterx.set_trainable(attach_to(model), names)
    with pytest.raises(ConfigError, match="No adapter of this BertForSequenceClassification tr"):
        trainer_of(model).train()


def test_fsdp_is_refused(build, attach_to, trainer_of) -> None:
    trainer = trainer_of(attach_to(build(kind="sequence")))
    trainer.args.fsdp = "full_shard"
    with pytest.raises(ConfigError, match="checkpoints of their own"):
        trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)
