"""The loop: what it learns, what it keeps, what it leaves alone, and how it is the same again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

import adapterx
from adapterx import Bottleneck
from adapterx.errors import ConfigError, DataError
from adapterx.prediction import logits_of
from adapterx.tasks.classification import Example, TextClassification
from adapterx.training.config import TrainingConfig
from adapterx.training.loop import Result, fit
from adapterx.training.task import train_task

LABELS = ("food", "law")
TASK = TextClassification(labels=LABELS)
WORDS = {"food": range(8), "law": range(45, 53)}
FAST: dict[str, Any] = {"learning_rate": 1e-2, "batch_size": 8, "max_length": 16}


def examples(count: int = 32, *, seed: int = 0) -> list[Example]:
    """Return sentences of three to six words; each label has words of its own."""
    generator = torch.Generator().manual_seed(seed)
    made: list[Example] = []
    for index in range(count):
        label = LABELS[index % 2]
        length = 3 + index % 4
        at = torch.randint(len(WORDS[label]), (length,), generator=generator)
        made.append(Example(" ".join(f"w{WORDS[label][i]}" for i in at.tolist()), None, label))
    return made


@pytest.fixture
def model(build: Callable[..., Any]) -> Any:
    """A tiny encoder with a fresh adapter and its head."""
    torch.manual_seed(3)
    return adapterx.add(build(labels=2, kind="sequence"), "t", "seq_bn", labels=LABELS)


@pytest.fixture
def run_fit(tokenizer: Any) -> Callable[..., Result]:
    """Return ``run_fit(model, ...)``: `fit` on the toy task."""

    def run_fit(model: Any, *, count: int = 16, spy: Any = None, **settings: Any) -> Result:
        config = {"epochs": 1, **FAST, **settings.pop("config", {})}

        def loss(wrapped: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
            if spy is not None:
                spy(wrapped, batch)
            return TASK.loss(wrapped, batch)

        return fit(
            model,
            settings.pop("records", examples(count)),
            collate=lambda records, step: TASK.batch(tokenizer, records, 16),
            items=TASK.items,
            loss=settings.pop("loss", loss),
            config=TrainingConfig(**config),
            progress=False,
            **settings,
        )

    return run_fit


@pytest.fixture
def ready(model: Any) -> Any:
    """The tiny encoder with its adapter active and trainable."""
    adapterx.activate(model, "t")
    return adapterx.set_trainable(model, "t")


@pytest.fixture
def precision() -> Iterator[None]:
    """Accelerate keeps a process's precision; give it back as it was."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def frozen(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}


# ------------------------------------------------------------------ what it learns


@pytest.mark.parametrize("kind", ["sequence", "mean"])
@pytest.mark.parametrize("method", ["seq_bn", "lora"])
def test_an_adapter_learns_a_separable_task(
    build: Callable[..., Any], tokenizer: Any, kind: str, method: str
) -> None:
    torch.manual_seed(3)
    model = adapterx.add(build(labels=5, kind=kind), "t", method, labels=LABELS)
    unseen = examples(40, seed=1)
    config = TrainingConfig(epochs=12, **FAST)
    result = train_task(
        model, tokenizer, "t", TASK, train=examples(64), dev=unseen, config=config, progress=False
    )
    assert result.losses[-1] < 0.3 * result.losses[0]
    assert result.scores[result.kept]["accuracy"] >= 0.95
    scores = TASK.metric().compute(
        predictions=TASK.predict(model, tokenizer, unseen),
        references=[TASK.reference(one) for one in unseen],
    )
    assert scores == result.scores[result.kept] == result.final
    assert str(adapterx.summary(model).active) == "t"


def test_a_result_counts_losses_scores_and_steps(
    ready: Any, run_fit: Callable[..., Result]
) -> None:
    result = run_fit(
        ready, count=21, config={"epochs": 3}, evaluate=lambda model: {"accuracy": 0.5}
    )
    assert len(result.losses) == len(result.scores) == 3
    assert result.steps == 3 * 3
    assert result.seconds > 0


def test_a_loss_is_the_mean_over_the_items_of_its_epoch(
    ready: Any, run_fit: Callable[..., Result]
) -> None:
    seen: list[float] = []

    def loss(wrapped: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        value = TASK.loss(wrapped, batch)
        seen.append(float(value.detach()))
        return value

    result = run_fit(ready, count=13, loss=loss, config={"epochs": 2})
    assert result.losses == pytest.approx([sum(seen[:2]) / 13, sum(seen[2:]) / 13], rel=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_rate_climbs_and_then_follows_its_schedule(
    ready: Any,
    run_fit: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    schedule: str,
) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def noted(self: Any, *arguments: Any, **named: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    config = {"epochs": 5, "schedule": schedule, "warmup": 0.2, "learning_rate": 0.5}
    run_fit(ready, config=config)  # ten steps, two of them to warm up
    assert rates[:3] == pytest.approx([0.0, 0.25, 0.5])
    expected = {
        "linear": [0.5 * (1 - at / 8) for at in range(8)],
        "cosine": [0.25 * (1 + math.cos(math.pi * at / 8)) for at in range(8)],
        "constant": [0.5] * 8,
    }
    assert rates[2:] == pytest.approx(expected[schedule])


# ------------------------------------------------------------------ what it keeps


@pytest.mark.parametrize(
    ("keep", "scores", "kept"),
    [
        ("best", [0.1, 0.9, 0.5], 1),
        ("best", [0.9, 0.1, 0.5], 0),
        ("best", [0.1, 0.5, 0.9], 2),
        ("best", [0.5, 0.5, 0.5], 2),
        ("last", [0.9, 0.5, 0.1], 2),
    ],
    ids=["best of the middle", "best of all", "best at last", "last of equals", "last"],
)
def test_the_model_has_the_weights_of_the_epoch_it_keeps(
    ready: Any, run_fit: Callable[..., Result], keep: str, scores: list[float], kept: int
) -> None:
    snapshots: list[dict[str, Tensor]] = []

    def evaluate(model: nn.Module) -> Mapping[str, float]:
        snapshots.append(weights(model))
        return {"macro_f1": scores[len(snapshots) - 1], "accuracy": 0.0}

    result = run_fit(
        ready, config={"epochs": 3, "keep": keep}, evaluate=evaluate, metric="macro_f1"
    )
    assert result.kept == kept
    assert [one["macro_f1"] for one in result.scores] == scores
    now = weights(ready)
    assert now.keys() == snapshots[kept].keys()
    for epoch, snapshot in enumerate(snapshots):
        same = all(torch.equal(now[name], snapshot[name]) for name in now)
        assert same == (epoch == kept)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_without_dev_data_the_last_epoch_is_kept(
    ready: Any, run_fit: Callable[..., Result], keep: str
) -> None:
    assert run_fit(ready, config={"epochs": 2, "keep": keep}).kept == 1


def test_the_average_is_the_mean_of_the_weights_at_all_points(
    ready: Any, run_fit: Callable[..., Result]
) -> None:
    snapshots: list[dict[str, Tensor]] = []

    def evaluate(model: nn.Module) -> Mapping[str, float]:
        snapshots.append(weights(model))
        return {"accuracy": 1 / len(snapshots)}

    config = {"epochs": 2, "batch_size": 4, "evaluate_every": 3, "keep": "average"}
    result = run_fit(ready, count=16, config=config, evaluate=evaluate)
    assert result.points == [3, 6, 8]
    *seen, last = snapshots
    for name, value in weights(ready).items():
        expected = torch.stack([one[name] for one in seen]).mean(0)
        torch.testing.assert_close(value, expected)
        assert torch.equal(value, last[name])  # the mean itself is scored at the end
    assert [one["accuracy"] for one in result.scores] == [1, 1 / 2, 1 / 3]
    assert result.final == {"accuracy": 1 / 4}
    assert result.kept == 2


def test_the_average_leaves_out_the_points_it_is_told_to(
    ready: Any, run_fit: Callable[..., Result]
) -> None:
    snapshots: list[dict[str, Tensor]] = []

    def evaluate(model: nn.Module) -> Mapping[str, float]:
        snapshots.append(weights(model))
        return {"accuracy": 0.5}

    config = {"epochs": 4, "keep": "average", "average_after": 0.5}
    run_fit(ready, config=config, evaluate=evaluate)
    for name, value in weights(ready).items():
        torch.testing.assert_close(value, (snapshots[2][name] + snapshots[3][name]) / 2)


def test_an_average_needs_no_dev_data(
    build: Callable[..., Any], run_fit: Callable[..., Result]
) -> None:
    _, last = _trained(build, run_fit, config={"epochs": 2, "keep": "last"})
    result, mean = _trained(build, run_fit, config={"epochs": 2, "keep": "average"})
    assert result.scores == []
    assert result.final == {}
    assert result.points == [2, 4]
    assert not all(torch.equal(mean[name], last[name]) for name in last)


@pytest.mark.parametrize(
    ("patience", "scores", "points"),
    [
        (1, [0.5, 0.5, 0.9, 0.9], 2),
        (2, [0.5, 0.4, 0.6, 0.6, 0.5, 0.9], 5),
        (0, [0.5, 0.4, 0.3, 0.2, 0.1, 0.0], 6),
        (3, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 6),
    ],
)
def test_training_ends_when_the_score_no_longer_rises(
    ready: Any, run_fit: Callable[..., Result], patience: int, scores: list[float], points: int
) -> None:
    left = iter(scores)
    result = run_fit(
        ready,
        config={"epochs": 6, "patience": patience, "keep": "best"},
        evaluate=lambda model: {"accuracy": next(left)},
    )
    assert len(result.scores) == points
    assert result.steps == 2 * points
    assert scores[result.kept] == max(scores[:points])
    assert result.final == {"accuracy": max(scores[:points])}


def test_patience_without_dev_data_is_an_error(ready: Any, run_fit: Callable[..., Result]) -> None:
    with pytest.raises(ConfigError, match="patience is 2, but there is no dev set"):
        run_fit(ready, config={"patience": 2})


@pytest.mark.parametrize(
    ("settings", "points"),
    [
        ({"epochs": 2}, [3, 6]),
        ({"epochs": 2, "evaluate_every": 2}, [2, 4, 6]),
        ({"epochs": 2, "evaluate_every": 4}, [4, 6]),
        ({"epochs": 5, "max_steps": 4}, [3, 4]),
        ({"epochs": 1, "max_steps": 400, "evaluate_every": 50}, [3]),
    ],
)
def test_the_last_step_is_always_a_point(
    ready: Any, run_fit: Callable[..., Result], settings: dict[str, Any], points: list[int]
) -> None:
    result = run_fit(ready, count=24, config=settings)
    assert result.points == points
    assert result.steps == points[-1]


# ------------------------------------------------------------------ what is the same


def _trained(build: Callable[..., Any], run_fit: Callable[..., Result], **settings: Any) -> Any:
    torch.manual_seed(3)
    model = adapterx.add(build(labels=2, kind="sequence"), "t", "seq_bn", labels=LABELS)
    adapterx.activate(model, "t")
    adapterx.set_trainable(model, "t")
    result = run_fit(model, **settings)
    return result, weights(model)


@pytest.mark.parametrize("count", [32, 29, 33])
@pytest.mark.parametrize("size", [4, 2])
def test_accumulated_small_batches_equal_one_large(
    build: Callable[..., Any], run_fit: Callable[..., Result], count: int, size: int
) -> None:
    large, one = _trained(build, run_fit, count=count, config={"epochs": 2, "batch_size": 8})
    settings = {"epochs": 2, "batch_size": size, "gradient_accumulation": 8 // size}
    small, two = _trained(build, run_fit, count=count, config=settings)
    assert small.steps == large.steps == 2 * -(-count // 8)
    assert small.losses == pytest.approx(large.losses, rel=1e-5)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_last_batch_that_is_not_full_still_takes_a_step(
    ready: Any, run_fit: Callable[..., Result]
) -> None:
    settings = {"epochs": 2, "batch_size": 4, "gradient_accumulation": 2}
    assert run_fit(ready, count=17, config=settings).steps == 2 * 3


def test_the_same_seed_gives_the_same_weights_bit_for_bit(
    build: Callable[..., Any], run_fit: Callable[..., Result]
) -> None:
    first, one = _trained(build, run_fit, config={"epochs": 2, "seed": 5})
    torch.manual_seed(99)  # the order does not hang on what was drawn before
    again, two = _trained(build, run_fit, config={"epochs": 2, "seed": 5})
    other, three = _trained(build, run_fit, config={"epochs": 2, "seed": 6})
    assert first.losses == again.losses != other.losses
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], three[name]) for name in one)


# ------------------------------------------------------------------ what it leaves alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_frozen_parameters_are_bit_identical_afterwards(
    build: Callable[..., Any],
    run_fit: Callable[..., Result],
    dtype: torch.dtype,
    batch: dict[str, Tensor],
) -> None:
    model = build(labels=2, kind="sequence", dtype=dtype, dropout=0.1)
    with torch.no_grad():
        base = model(**batch).logits
    adapterx.add(model, "other", "lora", labels=["x", "y", "z"])
    adapterx.add(model, "t", "seq_bn", labels=LABELS)
    adapterx.activate(model, "t")
    adapterx.set_trainable(model, "t")
    before, trained = frozen(model), weights(model)
    run_fit(model, config={"epochs": 2})
    after = frozen(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    moved = {
        name for name, value in weights(model).items() if not torch.equal(value, trained[name])
    }
    assert moved == trained.keys()
    adapterx.detach(model)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, base)


@pytest.mark.parametrize("kind", ["sequence", "mean"])
def test_the_frozen_encoder_runs_as_at_inference_and_what_trains_in_training(
    build: Callable[..., Any], run_fit: Callable[..., Result], kind: str
) -> None:
    model = build(labels=2, kind=kind, dropout=0.3)
    adapterx.add(model, "t", Bottleneck(layers=[1], dropout=0.2), labels=LABELS)
    adapterx.add(model, "sw", "seq_bn", kind="language")
    adapterx.activate(model, adapterx.Stack("sw", "t"))
    adapterx.set_trainable(model, "t")
    own = {
        id(part)
        for _, module in adapterx.registry.adapter_modules(model, "t")
        for part in module.modules()
    }
    encoder = {id(part) for part in model.base_model.modules()}
    wrong: list[str] = []
    checked: list[str] = []

    def spy(wrapped: nn.Module, batch: Any) -> None:
        for name, module in model.named_modules():
            holds = [p.requires_grad for p in module.parameters()]
            if id(module) in own or id(module) not in encoder:
                wanted = True
            elif holds and all(holds):
                wanted = True  # the pooler, which is part of the task's head
            elif any(holds):
                continue  # a frozen module with an adapter somewhere in it
            else:
                wanted = name.startswith("bert.pooler")
            checked.append(name)
            if module.training != wanted:
                wrong.append(name)

    run_fit(model, spy=spy)
    assert not wrong
    assert any("dropout" in name for name in checked)
    assert not any(module.training for module in model.modules())


def test_a_bare_encoder_in_training_leaves_no_module_in_training_mode(
    build: Callable[..., Any], run_fit: Callable[..., Result]
) -> None:
    model = adapterx.add(build(dropout=0.3), "sw", "seq_bn", kind="language")
    adapterx.activate(model, "sw")
    adapterx.set_trainable(model, "sw")

    def loss(wrapped: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        value: Tensor = wrapped(**inputs).last_hidden_state.square().mean()
        return value * len(batch["labels"])

    result = run_fit(model, loss=loss, config={"epochs": 2})
    assert result.losses[1] < result.losses[0]
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("fails", [False, True], ids=["done", "failed"])
def test_the_attention_implementation_is_the_same_afterwards(
    build: Callable[..., Any], run_fit: Callable[..., Result], attention: str, fails: bool
) -> None:
    model = build(labels=2, kind="sequence", attention=attention)
    adapterx.add(model, "t", "seq_bn", labels=LABELS)
    adapterx.activate(model, "t")
    adapterx.set_trainable(model, "t")
    during: list[str] = []

    def spy(wrapped: nn.Module, batch: Any) -> None:
        during.append(model.config._attn_implementation)
        if fails:
            raise RuntimeError("the power went")

    try:
        run_fit(model, spy=spy)
    except RuntimeError:
        assert fails
    assert set(during) == {"eager" if not torch.cuda.is_available() else attention}
    assert model.config._attn_implementation == attention


def test_fit_leaves_nothing_on_the_model(ready: Any, run_fit: Callable[..., Result]) -> None:
    before = {name: sorted(vars(module)) for name, module in ready.named_modules()}
    run_fit(ready)
    assert {name: sorted(vars(module)) for name, module in ready.named_modules()} == before


# ------------------------------------------------------------------ precision


@pytest.mark.usefixtures("precision")
def test_bf16_autocast_trains_float32_weights_to_finite_losses(
    build: Callable[..., Any], run_fit: Callable[..., Result], tokenizer: Any
) -> None:
    torch.manual_seed(3)
    model = adapterx.add(build(labels=2, kind="sequence"), "t", "seq_bn", labels=LABELS)
    adapterx.activate(model, "t")
    adapterx.set_trainable(model, "t")
    before = {name: sorted(vars(module)) for name, module in model.named_modules()}
    inner: list[torch.dtype] = []
    hook = model.base_model.encoder.layer[0].intermediate.dense.register_forward_hook(
        lambda module, inputs, output: inner.append(output.dtype)
    )
    result = run_fit(model, config={"epochs": 6, "mixed_precision": "bf16"})
    assert set(inner) == {torch.bfloat16}
    assert torch.tensor(result.losses).isfinite().all()
    assert result.losses[-1] < result.losses[0]
    assert {value.dtype for value in weights(model).values()} == {torch.float32}
    inner.clear()
    logits_of(model, tokenizer, ["w1 w2"])
    hook.remove()
    # Autocast ends with the training: a saved adapter must answer as the trained one does.
    assert set(inner) == {torch.float32}
    assert {name: sorted(vars(module)) for name, module in model.named_modules()} == before


@pytest.mark.usefixtures("precision")
def test_another_precision_in_the_same_process_is_a_clear_error(
    ready: Any, run_fit: Callable[..., Result]
) -> None:
    run_fit(ready, config={"mixed_precision": "bf16"})
    with pytest.raises(ConfigError, match=r"mixed_precision 'no' .* or a fresh process\."):
        run_fit(ready, config={"mixed_precision": "no"})
    run_fit(ready, config={"mixed_precision": "bf16"})


@pytest.mark.usefixtures("precision")
def test_fp16_without_a_gpu_is_an_error(ready: Any, run_fit: Callable[..., Result]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=r"'fp16', which needs a GPU\. Use bf16 or no on a CPU\."):
        run_fit(ready, config={"mixed_precision": "fp16"})


@pytest.mark.usefixtures("precision")
def test_the_scale_of_fp16_changes_nothing_but_a_step_that_overflows(
    build: Callable[..., Any], run_fit: Callable[..., Result]
) -> None:
    _, plain = _trained(build, run_fit, config={"epochs": 2})
    scaled = Accelerator()
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    _, same = _trained(build, run_fit, config={"epochs": 2}, accelerator=scaled)
    # A power of two moves exponents only.
    assert all(torch.equal(plain[name], same[name]) for name in plain)
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    _, fresh = _trained(build, run_fit, config={"epochs": 1, "learning_rate": 0.0})
    _, still = _trained(
        build,
        run_fit,
        config={"epochs": 1},
        accelerator=scaled,
        loss=lambda model, batch: 1e6 * TASK.loss(model, batch),
    )
    assert all(torch.equal(fresh[name], still[name]) for name in fresh)
    assert scaled.scaler.get_scale() == 2.0**125  # halved by each of two steps


# ------------------------------------------------------------------ errors


def test_training_without_data_is_an_error(ready: Any, run_fit: Callable[..., Result]) -> None:
    with pytest.raises(DataError, match=r"There is no training data\."):
        run_fit(ready, records=[])


def test_training_nothing_is_an_error(model: Any, run_fit: Callable[..., Result]) -> None:
    adapterx.set_trainable(model, [])
    with pytest.raises(ConfigError, match=r"Nothing is trainable\. Call adapterx\.set_trainable"):
        run_fit(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_an_error(
    ready: Any, run_fit: Callable[..., Result], value: float
) -> None:
    def loss(wrapped: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return TASK.loss(wrapped, batch) * value

    with pytest.raises(DataError, match=rf"The loss is {value}\. Lower learning_rate"):
        run_fit(ready, count=8, loss=loss)


def test_examples_of_one_label_teach_nothing() -> None:
    same = [Example("a", None, "x"), Example("b", None, "x")]
    task = TextClassification()
    with pytest.raises(DataError, match=r"All 2 examples have the label 'x'\. Give two\."):
        task.with_labels(same)
    assert task.with_labels([*same, Example("c", None, "a")]).labels == ("a", "x")


WRONG: dict[str, Any] = {
    "epochs": 0,
    "batch_size": -1,
    "gradient_accumulation": 1.5,
    "max_length": "128",
    "learning_rate": float("nan"),
    "weight_decay": -0.1,
    "warmup": 2,
    "max_grad_norm": "1",
    "schedule": "linaer",
    "keep": "first",
    "max_steps": -1,
    "evaluate_every": 1.5,
    "save_every": -2,
    "patience": "3",
    "average_after": 1.5,
    "languages": "all",
    "trackers": ("tensorbord",),
    "mixed_precision": "fp8",
    "seed": -1,
}


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_setting_is_named_with_its_value(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainingConfig(**{key: WRONG[key]})
    assert str(caught.value).startswith(f"Training settings: {key} is {WRONG[key]!r}, not ")


def test_all_wrong_settings_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        TrainingConfig(**WRONG)
    text = str(caught.value)
    assert [key for key in WRONG if f"{key} is {WRONG[key]!r}" not in text] == []
    assert text.count("; ") == len(WRONG) - 1
    assert "\n" not in text


@pytest.mark.parametrize("key", ["epochs", "batch_size", "learning_rate", "seed"])
def test_yes_and_no_are_no_numbers(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is True"):
        TrainingConfig(**{key: True})
