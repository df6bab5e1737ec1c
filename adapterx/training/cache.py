"""The cache: what the layers below all that trains make of a text is computed once.

Those layers are frozen and run without dropout, so a text leaves them the same in every epoch.
While a run lasts, the encoder's forward looks its rows up, and the lower layers hand kept states on
and compute nothing. Embeddings, masks and positions are the encoder's own, computed as always.

On a CPU every row is computed alone and without padding, so that its states hang on nothing but the
row: not on its neighbours, the size of the cache, or where a run that was stopped goes on.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from adapterx.plan import Plan
from adapterx.registry import HEADS, Registry, registry_of, unwrap
from adapterx.routing import Flow, Rows
from adapterx.training.config import TrainingConfig
from adapterx.training.states import States, opened

__all__ = ["cached", "constant_layers"]

# What asks the lower layers for more than the states they hand on.
_INSIDE: Final = ("output_hidden_states", "output_attentions")
# One row, computed twice in the same shapes, differs in nothing or in much.
_ALIKE: Final = 1e-3


@contextmanager
def cached(
    model: nn.Module, config: TrainingConfig, *, folder: Path | None = None
) -> Iterator[None]:
    """Let a model keep, for a while, what its constant layers make of each row.

    Whatever calls the encoder meanwhile is served, in training and in evaluation. Afterwards, also
    after an error, the model is as it was.

    Args:
        model: With what trains requiring a gradient, which must not change meanwhile.
        config: Its `cache` and `cache_limit` say where rows are kept, and how many.
        folder: Where the file of a cache on disk goes; None for the system's temporary folder.
    """
    depth = 0 if config.cache == "off" else constant_layers(model)
    if not depth:
        yield
        return
    registry = registry_of(model)
    assert registry is not None
    encoder = unwrap(model).base_model
    with opened(config, folder) as known:
        lower = _Lower(encoder, registry, depth, known)
        with _replaced([encoder], lower.forward):
            yield


def constant_layers(model: nn.Module) -> int:
    """Return how many layers, from the first on, training cannot change.

    None where something trains in the embeddings or the whole model does, for encoder-decoders
    (their layers hand on more than states), compiled models, and where nothing is attached.
    """
    registry = registry_of(model)
    if registry is None or registry.anatomy.decoder is not None or unwrap(model) is not model:
        return 0
    layers = f"{registry.anatomy.layers}."
    above = tuple(f"{name}." for name in (registry.anatomy.pooler, HEADS) if name is not None)
    lowest = registry.depths[0]
    for name, parameter in unwrap(model).base_model.named_parameters():
        if not parameter.requires_grad or name.startswith(above):
            continue
        if not name.startswith(layers):
            return 0
        lowest = min(lowest, _number(name.removeprefix(layers)))
    return lowest


def _number(rest: str) -> int:
    """Return the number of a layer from what follows the list's name: ``3.output``, ``0:after``."""
    return int(rest.split(".")[0].split(":")[0])


class _Inputs(NamedTuple):
    """What one call of the encoder reads.

    Attributes:
        tensors: ``(rows,)``, or ``(rows, …)``; those of the token ids' shape go by token.
        others: What is no tensor.
        lengths: Tokens of each row, up to the last that is not masked.
    """

    tensors: Mapping[str, Tensor]
    others: Mapping[str, Any]
    lengths: Sequence[int]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and tokens of the call."""
        rows, tokens = self.tensors["input_ids"].shape
        return rows, tokens

    @property
    def device(self) -> torch.device:
        """Where the token ids are."""
        return self.tensors["input_ids"].device

    def some(self, rows: Sequence[int]) -> dict[str, Any]:
        """Return what the encoder is called with for some rows, as long as the longest."""
        length = max(self.lengths[row] for row in rows)
        tensors = {
            name: value[list(rows), :length] if value.shape == self.shape else value[list(rows)]
            for name, value in self.tensors.items()
        }
        return {**self.others, **tensors}


class _Lower:
    """The constant layers of one encoder, and what they made of the rows they met."""

    def __init__(self, encoder: nn.Module, registry: Registry, depth: int, known: States) -> None:
        self.encoder, self.registry, self.known = encoder, registry, known
        self.switch = registry.switch
        layers = list(encoder.get_submodule(registry.anatomy.layers).children())
        self.lower, self.upper = layers[:depth], layers[depth:]
        self.whole: Callable[..., Any] = encoder.forward
        self.signature = inspect.signature(self.whole)
        # How a layer returns its states: in a tuple of so many values, or alone.
        self.width: int | None = None
        # Whether the encoder can be started in the middle; not known before it was tried.
        self.fits: bool | None = None
        self._setups: dict[Hashable, int] = {}
        self._plan: tuple[Plan, list[int]] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the encoder; the lower layers only for rows that are not known yet."""
        inputs = None if self.fits is False else self._inputs(args, kwargs)
        states = None if inputs is None else self._states(inputs)
        if states is None:
            return self.whole(*args, **kwargs)
        return self._from(states, args, kwargs)

    def _inputs(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Inputs | None:
        """Return a call's inputs by name, None if they are not rows of tokens alone."""
        bound = dict(self.signature.bind(*args, **kwargs).arguments)
        for one in self.signature.parameters.values():
            if one.kind is one.VAR_KEYWORD:
                bound |= bound.pop(one.name, {})
        config: Any = self.encoder.config
        if any(bound.get(name) or getattr(config, name, False) for name in _INSIDE):
            return None
        tensors = {name: value for name, value in bound.items() if isinstance(value, Tensor)}
        others = {name: value for name, value in bound.items() if name not in tensors}
        ids, mask = tensors.get("input_ids"), tensors.get("attention_mask")
        if ids is None or ids.dim() != 2 or not ids.numel():
            return None
        if any(value.dim() > 2 or len(value) != len(ids) for value in tensors.values()):
            return None
        if mask is None:
            return _Inputs(tensors, others, [ids.shape[1]] * len(ids))
        if mask.shape != ids.shape:
            return None
        ends = (mask != 0) * torch.arange(1, ids.shape[1] + 1, device=mask.device)
        return _Inputs(tensors, others, ends.amax(1).clamp(min=1).tolist())

    def _states(self, inputs: _Inputs) -> Tensor | None:
        """Return what the lower layers make of all rows, ``(rows, tokens, hidden)``.

        Masked tokens at a row's end are zeros: nothing that is read hangs on them. None if the
        rows cannot be told apart, or the layers don't fit.
        """
        flow = self.switch.flow()
        if flow.rows is not None and not flow.rows.known:
            return None
        keys = self._keys(inputs, flow)
        found = {
            row: kept for row, key in enumerate(keys) if (kept := self.known.get(key)) is not None
        }
        missing = [row for row in range(len(keys)) if row not in found]
        alone = inputs.device.type == "cpu"
        for rows in [[row] for row in missing] if alone else filter(None, [missing]):
            states = self._computed(inputs, flow, rows)
            if self.fits is None:
                self.fits = states is not None and self._agrees(inputs, flow, rows[0], states)
            if states is None or not self.fits:
                self.fits = False
                return None
            for row, state in zip(rows, states, strict=True):
                found[row] = state[: inputs.lengths[row]]
                self.known.put(keys[row], found[row])
        count, tokens = inputs.shape
        result = found[0].new_zeros((count, tokens, found[0].shape[-1]), device=inputs.device)
        for row, state in found.items():
            result[row, : len(state)] = state.to(inputs.device, non_blocking=True)
        return result

    def _keys(self, inputs: _Inputs, flow: Flow) -> list[bytes]:
        """Return for each row a hash of all that its states hang on."""
        setups = self._setups_of(flow.plan)
        variants = [0] * len(inputs.lengths) if flow.rows is None else flow.rows.variants
        kind = inputs.device.type
        casts = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        others = sorted((name, repr(value)) for name, value in inputs.others.items())
        values = {name: value.cpu().numpy() for name, value in sorted(inputs.tensors.items())}
        keys = []
        for row, length in enumerate(inputs.lengths):
            known = hashlib.blake2b(
                repr((setups[int(variants[row])], length, casts, others)).encode(), digest_size=16
            )
            for name, value in values.items():
                part = value[row, :length] if value.shape == inputs.shape else value[row]
                known.update(f"{name} {part.dtype} {part.shape}".encode())
                known.update(part.tobytes())
            keys.append(known.digest())
        return keys

    def _setups_of(self, plan: Plan) -> list[int]:
        """Return for each variant of a plan a number for what acts in the lower layers."""
        if self._plan is None or self._plan[0] is not plan:
            layers, depth = f"{self.registry.anatomy.layers}.", len(self.lower)
            programs = [
                (key, program)
                for key, program in plan.programs.items()
                if not key.startswith(layers) or _number(key.removeprefix(layers)) < depth
            ]
            setups = []
            for variant in range(len(plan.partition)):
                acting = tuple((key, program.steps(variant)) for key, program in programs)
                setups.append(self._setups.setdefault(acting, len(self._setups)))
            self._plan = (plan, setups)
        return self._plan[1]

    def _computed(self, inputs: _Inputs, flow: Flow, rows: Sequence[int]) -> Tensor | None:
        """Return what the lower layers make of some rows, ``(rows, longest, hidden)``.

        The upper layers hand the last of it on, unread. None if it is not a state a token.
        """
        outputs: list[Any] = [None]

        def see(layer: nn.Module, args: Any, output: Any) -> None:
            outputs[0] = output  # of the last run, where one layer runs many times

        given = inputs.some(rows)
        hook = self.lower[-1].register_forward_hook(see)
        try:
            with (
                self._aside(inputs, flow, rows),
                _replaced(self.upper, lambda *_, **__: outputs[0]),
            ):
                self.whole(**given)
        finally:
            hook.remove()
        output = outputs[0]
        if isinstance(output, tuple):
            self.width, output = len(output), output[0]
        fits = isinstance(output, Tensor) and output.dim() == 3
        return output if fits and output.shape[:2] == given["input_ids"].shape else None

    def _from(self, states: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run the encoder with kept states in place of the lower layers' work."""
        output = states if self.width is None else (states, *[None] * (self.width - 1))
        with _replaced(self.lower, lambda *_, **__: output):
            return self.whole(*args, **kwargs)

    def _agrees(self, inputs: _Inputs, flow: Flow, row: int, states: Tensor) -> bool:
        """Whether the encoder, started with a row's states, answers as it does from the beginning.

        It does not where layers hand on more than their states, or look back further.
        """
        given, ends = inputs.some([row]), []
        states = states[:1, : inputs.lengths[row]]
        drawing = [inputs.device] if inputs.device.type == "cuda" else []
        for run in (self.whole, lambda **named: self._from(states, (), named)):
            # Both draw the same dropout, and nobody notices that they drew.
            with self._aside(inputs, flow, [row]), torch.random.fork_rng(drawing):
                try:
                    ends.append(run(**given)[0].float())
                except Exception:  # whatever a layer does that was not handed what it wants
                    return False
        whole, kept = ends
        return bool((whole - kept).abs().max() <= _ALIKE * whole.abs().max())

    @contextmanager
    def _aside(self, inputs: _Inputs, flow: Flow, rows: Sequence[int]) -> Iterator[None]:
        """Run the encoder for some rows of the pass under way, without a trace in it."""
        chosen = None
        if flow.rows is not None:
            chosen = Rows([int(flow.rows.variants[row]) for row in rows], frozenset())
        kind = inputs.device.type
        # Autocast keeps the weights it cast: here they would be kept without their gradient.
        casts = torch.autocast(
            kind,
            dtype=torch.get_autocast_dtype(kind),
            enabled=torch.is_autocast_enabled(kind),
            cache_enabled=False,
        )
        # Rows met in evaluation are read in training: no inference tensors.
        under = self.switch.under(Flow(flow.plan, chosen))
        with torch.inference_mode(False), torch.no_grad(), casts, under:
            yield


@contextmanager
def _replaced(modules: Sequence[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """Give modules another forward for a while; their hooks and names stay."""
    # Accelerate puts a forward on the module itself, too.
    before = [module.__dict__.get("forward") for module in modules]
    for module in modules:
        module.__dict__["forward"] = forward
    try:
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            if own is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = own
