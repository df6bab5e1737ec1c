"""The loop: one for every task and for language adapters, in one process or many.

Only parameters that require a gradient are given to the optimiser, kept and written; the frozen
base is never copied.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from tqdm.auto import tqdm

from adapterx.composition import JsonValue
from adapterx.errors import ConfigError, DataError
from adapterx.training.batches import Records, Step, count_of, steps_in_epoch, steps_of
from adapterx.training.cache import cached
from adapterx.training.checkpoint import (
    Checkpoint,
    fingerprint,
    newest,
    read_checkpoint,
    write_checkpoint,
)
from adapterx.training.config import TrainingConfig
from adapterx.training.keeping import Keeper
from adapterx.training.modes import attention_for_training, training_mode
from adapterx.training.processes import accelerator_for, check_accelerator
from adapterx.training.steps import Stepper

__all__ = ["Result", "fit"]

_Record = TypeVar("_Record")
_Evaluate: TypeAlias = Callable[[nn.Module], Mapping[str, float]]
# Readings of the loss in a run, for the bar and the trackers: each makes the host wait.
_READINGS: Final = 100
# Settings in which a run that goes on may differ from the one that was stopped.
_FREE: Final = ("save_every", "trackers", "cache_limit")


@dataclass(slots=True)
class Result:
    """What a run did.

    Attributes:
        losses: Mean loss over the items since the evaluation point before, at each point.
        scores: What `evaluate` returned at each point.
        points: After how many steps each point was.
        kept: Index of the point whose weights the model has now; of the last one, where the mean
            of several is kept.
        final: Scores of the weights the model has now; empty without `evaluate`.
        steps: Optimiser steps taken.
        examples: Records of an epoch; 0 where `max_steps` spared a stream from being counted.
        seconds: Wall-clock time of training, evaluation included.
    """

    losses: list[float] = field(default_factory=list)
    scores: list[Mapping[str, float]] = field(default_factory=list)
    points: list[int] = field(default_factory=list)
    kept: int = 0
    final: Mapping[str, float] = field(default_factory=dict)
    steps: int = 0
    examples: int = 0
    seconds: float = 0.0


def fit(
    model: nn.Module,
    records: Records[_Record],
    *,
    collate: Callable[[Sequence[_Record], int], Mapping[str, Any]],
    items: Callable[[Mapping[str, Any]], Tensor],
    loss: Callable[[nn.Module, Mapping[str, Any]], Tensor],
    config: TrainingConfig,
    evaluate: _Evaluate | None = None,
    metric: str = "accuracy",
    accelerator: Accelerator | None = None,
    folder: Path | None = None,
    resume: bool | Path = False,
    settings: Mapping[str, JsonValue] | None = None,
    progress: bool = True,
    title: str = "train",
) -> Result:
    """Train what requires a gradient in a model.

    Args:
        model: With the adapters to train active and `adapterx.set_trainable`; changed in place.
        records: The training data.
        collate: Makes a batch of records, on the CPU; it is told the number of the step.
        items: How many items the loss of a batch sums, a scalar. The loss of a step is the mean
            over the items of all its batches, on all processes.
        loss: Computes the loss of a batch, summed over its items, a scalar.
        config: The settings.
        evaluate: Returns dev scores of a model; called at every evaluation point, on all
            processes, of which the first one's scores count.
        metric: The score that decides what is best; higher is better.
        accelerator: Accelerate's; None for a new one with what `config` says.
        folder: Where checkpoints and logs go.
        resume: Go on from the newest checkpoint in `folder`, if there is one, or from the
            checkpoint given.
        settings: What else must be the same for a run to go on: the task, the composition.
        progress: Show a progress bar on stderr.
        title: What the bar and the trackers call the run.

    Returns:
        Losses, scores, which weights were kept, and the time.

    Raises:
        ConfigError: If nothing is trainable, a setting lacks what it needs, Accelerate is set to
            what this loop cannot do, or a checkpoint is of another run.
        DataError: If there are no records, or the loss is not finite.
    """
    if isinstance(records, Sequence) and not records:
        raise DataError("There is no training data.")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("Nothing is trainable. Call adapterx.set_trainable(model, name) first.")
    if config.patience and evaluate is None:
        raise ConfigError(f"patience is {config.patience}, but there is no dev set to wait for.")
    if folder is None and (config.save_every or resume is True):
        raise ConfigError("Checkpoints are asked for, but no folder to keep them in. Give one.")
    accelerator = accelerator or accelerator_for(config, folder=folder)
    check_accelerator(accelerator)
    if not accelerator.verify_device_map(model):
        model.to(accelerator.device)
    stepper = Stepper(model, config, accelerator, items=items, loss=loss)
    run = _Run(stepper, records, evaluate, metric)
    if folder is not None and (config.save_every or resume):
        run.save_into(folder, settings or {})
    place = newest(folder) if resume is True and folder is not None else resume
    if isinstance(place, Path):
        run.resume(place, settings or {})
    attention = attention_for_training(model, accelerator.device)
    with attention, run.shown(title, progress), run.cached(folder):
        run.go(collate)
    model.eval()
    return run.result


class _Run:
    """A run: where it is, what it has seen, and what it does between two steps."""

    def __init__(
        self,
        stepper: Stepper,
        records: Records[Any],
        evaluate: _Evaluate | None,
        metric: str,
    ) -> None:
        self.stepper, self.records = stepper, records
        self.evaluate, self.metric = evaluate, metric
        self.config, self.accelerator = stepper.config, stepper.accelerator
        self.keeper = Keeper(self.config, metric)
        self.result = Result()
        self.epoch = self.index = 0
        self.folder: Path | None = None
        self.settings: Mapping[str, JsonValue] = {}
        self.steps = self.config.max_steps
        if isinstance(records, Sequence) or not self.steps:
            self.result.examples = count_of(records)
            epoch = steps_in_epoch(
                self.result.examples, self.config, self.accelerator.num_processes
            )
            self.steps = min(self.config.epochs * epoch, self.steps or self.config.epochs * epoch)

    def go(self, collate: Callable[[Sequence[Any], int], Mapping[str, Any]]) -> None:
        """Take the steps that are left, and keep the weights that shall be kept."""
        config, result, model = self.config, self.result, self.stepper.model
        start = time.perf_counter() - result.seconds
        training_mode(model)
        for step in self._left():
            batches = [collate(share, result.steps) for share in step.shares if share]
            self.stepper.step(batches, config.rate(result.steps, self.steps))
            result.steps += 1
            self.epoch, self.index = step.after
            self.bar.update()
            ends = self._is_point(step)
            if ends or result.steps % max(1, self.steps // _READINGS) == 0:
                self._read()
            if ends:
                self._point()
                training_mode(model)
            result.seconds = time.perf_counter() - start
            if config.save_every and result.steps % config.save_every == 0:
                self._save()
        self._keep()
        result.seconds = time.perf_counter() - start

    def cached(self, folder: Path | None) -> AbstractContextManager[None]:
        """Compute what does not change once a text, where the run is known to read one again."""
        epoch = steps_in_epoch(self.result.examples, self.config, self.accelerator.num_processes)
        if not epoch or self.steps <= epoch:
            return nullcontext()
        return cached(self.stepper.model, self.config, folder=folder)

    def _left(self) -> Iterator[Step[Any]]:
        steps = steps_of(
            self.records,
            self.config,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
            epoch=self.epoch,
            index=self.index,
        )
        while self.result.steps < self.steps and not self.keeper.finished:
            step = next(steps, None)
            if step is None:
                return
            yield step

    def _is_point(self, step: Step[Any]) -> bool:
        done, every = self.result.steps, self.config.evaluate_every
        due = done % every == 0 if every else step.last
        return due or done == self.steps or (step.last and step.epoch + 1 == self.config.epochs)

    def _read(self) -> None:
        loss = self.stepper.read()
        self.bar.set_postfix(loss=f"{loss:.3f}")
        rate = self.config.rate(self.result.steps - 1, self.steps)
        self._log({"loss": loss, "learning_rate": rate})

    def _point(self) -> None:
        """Score the weights, and take note of them."""
        result = self.result
        result.points.append(result.steps)
        result.losses.append(self.stepper.mean())
        scores = self._scores()
        if scores:
            result.scores.append(scores)
            self.bar.set_postfix(
                {"loss": f"{result.losses[-1]:.3f}", self.metric: f"{scores[self.metric]:.3f}"}
            )
            self._log({f"dev {name}": value for name, value in scores.items()})
        self.keeper.see(
            self.stepper.trainable, scores or None, share=result.steps / max(1, self.steps)
        )

    def _scores(self) -> Mapping[str, float]:
        if self.evaluate is None:
            return {}
        self.stepper.model.eval()
        scores = [self.evaluate(self.stepper.model)]
        broadcast_object_list(scores)  # all must decide alike
        return scores[0]

    def _keep(self) -> None:
        result = self.result
        result.kept = self.keeper.kept
        self.stepper.put(self.keeper.weights)
        if result.scores:
            result.final = result.scores[result.kept]
        if self.config.keep == "average" and self.keeper.averaged > 1:
            result.final = self._scores()

    # ------------------------------------------------------------------ checkpoints

    def save_into(self, folder: Path, settings: Mapping[str, JsonValue]) -> None:
        """Say where checkpoints go."""
        self.folder = folder
        self.settings = self._identity(settings)

    def resume(self, place: Path, settings: Mapping[str, JsonValue]) -> None:
        """Take up the run that a checkpoint holds."""
        saved = read_checkpoint(place, self.settings or self._identity(settings))
        own = saved.processes[self.accelerator.process_index]
        self.stepper.restore(saved.weights, saved.shared, own)
        self.epoch, self.index = saved.progress["epoch"], saved.progress["index"]
        self.result = Result(**saved.progress["result"])
        self.keeper.restore(saved.progress["keeper"], saved.kept)

    def _identity(self, settings: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        config: dict[str, JsonValue] = dataclasses.asdict(self.config)
        shapes = {name: str(tuple(value.shape)) for name, value in self.stepper.trainable.items()}
        return {
            **{key: value for key, value in config.items() if key not in _FREE},
            **settings,
            "processes": self.accelerator.num_processes,
            "records": fingerprint(self.records),
            "trainable": shapes,
        }

    def _save(self) -> None:
        processes = gather_object([self.stepper.own_state()])
        if self.folder is None or not self.accelerator.is_main_process:
            return
        progress = {
            "epoch": self.epoch,
            "index": self.index,
            "keeper": self.keeper.state(),
            "result": dataclasses.asdict(self.result),
        }
        write_checkpoint(
            self.folder,
            self.result.steps,
            Checkpoint(
                self.settings,
                progress,
                self.stepper.trainable,
                self.keeper.weights,
                self.stepper.shared_state(),
                processes,
            ),
        )

    # ------------------------------------------------------------------ what a person sees

    @contextmanager
    def shown(self, title: str, progress: bool) -> Iterator[None]:
        """Show a bar, and open the trackers that Accelerate was given."""
        accelerator = self.accelerator
        self.bar = tqdm(
            total=self.steps,
            initial=self.result.steps,
            desc=title,
            unit="step",
            # None: shown on a terminal only; a file would hold a line for every step.
            disable=None if progress and accelerator.is_main_process else True,
            leave=False,
        )
        if accelerator.log_with:
            values = dataclasses.asdict(self.config)
            values["trackers"] = ", ".join(self.config.trackers)
            accelerator.init_trackers(title.replace(" ", "-"), config=values)
        try:
            yield
        finally:
            self.bar.close()
            for tracker in accelerator.trackers:
                tracker.finish()
            accelerator.trackers = []

    def _log(self, values: Mapping[str, float]) -> None:
        if self.accelerator.trackers:
            self.accelerator.log(dict(values), step=self.result.steps)
