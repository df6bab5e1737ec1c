"""The callback that makes a Hugging Face `Trainer` keep adapters and heads only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from adapterx.errors import ConfigError
from adapterx.registry import registry_of, unwrap
from adapterx.store import save

__all__ = ["AdapterCallback"]

# What `save_pretrained` leaves out, and how it renames what it writes, on the model itself.
_IGNORED = "_keys_to_ignore_on_save"
_RENAMED = "_weight_conversions"


class _Frozen:
    """The names in a model's state that do not train; found when asked, for that may change."""

    def __init__(self, model: nn.Module, before: Any) -> None:
        self.model = model
        self.before = before

    def __iter__(self) -> Iterator[str]:
        always = set(self.before or ())
        if registry_of(self.model) is None:  # detached meanwhile: a plain model, saved whole
            return iter(always)
        trained = {
            name
            for name, parameter in self.model.named_parameters(remove_duplicate=False)
            if parameter.requires_grad
        }
        return (name for name in self.model.state_dict() if name not in trained - always)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class AdapterCallback(TrainerCallback):
    """Lets a Hugging Face `Trainer` write, resume and reload what trains, without base weights.

    ``Trainer(model, arguments, callbacks=[adapterx.AdapterCallback()], ...)``, after
    `adapterx.set_trainable`. A checkpoint's ``model.safetensors`` holds what trains, which is what
    `Trainer` needs to resume and to reload the best; ``adapters/NAME`` in it is each trained
    adapter as `adapterx.save` writes it. A resumed run ends in the same bits on one CPU.

    From when the trainer is made until ``train`` is done, ``model.save_pretrained`` leaves out
    what does not train.
    """

    def __init__(self) -> None:
        self._conversions: Any = []

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Say which weights `Trainer` need not miss when it resumes: it loads before it begins."""
        model = unwrap(kwargs["model"])
        before = getattr(model, _IGNORED, None)
        if not isinstance(before, _Frozen):
            setattr(model, _IGNORED, _Frozen(model, before))

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Let checkpoints hold what trains, by the names that it has in the model.

        Raises:
            ConfigError: If no adapter trains, or under FSDP or DeepSpeed.
        """
        if args.fsdp or args.deepspeed:
            raise ConfigError(
                "FSDP and DeepSpeed write checkpoints of their own, which are whole. Leave "
                "AdapterCallback out, or them: what trains is small."
            )
        model = unwrap(kwargs["model"])
        registry = registry_of(model)
        if registry is None or not registry.switch.trainable:
            raise ConfigError(
                f"No adapter of this {type(model).__name__} trains, so a checkpoint would be "
                "empty. Say which: adapterx.set_trainable(model, names)."
            )
        self.on_init_end(args, state, control, **kwargs)
        # `save_pretrained` writes the names of the file that the base was loaded from, and
        # `Trainer` loads them by the names of the model.
        conversions = vars(model).get(_RENAMED)
        if conversions != []:  # else there are none, or the run begins anew with smaller batches
            self._conversions = conversions
            setattr(model, _RENAMED, [])

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Write each adapter that trains into the checkpoint, for `adapterx.load`."""
        model = unwrap(kwargs["model"])
        registry = registry_of(model)
        assert registry is not None
        checkpoint = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if args.should_save and checkpoint.is_dir():  # a search for settings has folders of its own
            for name in sorted(registry.switch.trainable):
                save(model, name, checkpoint / "adapters" / name)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Let ``model.save_pretrained`` write everything again."""
        model = unwrap(kwargs["model"])
        ignored = getattr(model, _IGNORED)
        assert isinstance(ignored, _Frozen)
        setattr(model, _IGNORED, ignored.before)
        if self._conversions is None:
            delattr(model, _RENAMED)
        else:
            setattr(model, _RENAMED, self._conversions)
        self._conversions = []
