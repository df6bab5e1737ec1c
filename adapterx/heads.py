"""Heads: what stands outside the encoder, and the pooler it reads, one set per task.

The head that answers stands at its place in the model; the others are parked here. Swapping
exchanges modules by reference and sets what the configuration says about labels. Where rows
choose their task, a stand-in takes the place and gives each row to its own head.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from adapterx.anatomy import Anatomy
from adapterx.centring import Offsets
from adapterx.errors import BaseModelError, CompositionError, ConfigError
from adapterx.plan import Plan
from adapterx.routing import Gate, Rows, Selector, unhook
from adapterx.sites import Site

__all__ = [
    "PROBLEMS",
    "Heads",
    "Labels",
    "Problem",
    "check_output",
    "fill",
    "head_places",
    "read_labels",
]

Problem: TypeAlias = Literal[
    "single_label_classification", "multi_label_classification", "regression"
]
PROBLEMS: Final[tuple[Problem, ...]] = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
)


@dataclass(frozen=True, slots=True)
class Labels:
    """What a model's configuration says about a head's answers.

    Attributes:
        names: Label names in the order of the logits.
        problem: Kind of answer, None where the head's class decides.
    """

    names: tuple[str, ...]
    problem: Problem | None = None


def head_places(model: PreTrainedModel, anatomy: Anatomy) -> dict[str, nn.Module]:
    """Return the modules that make up a model's head: name of the place → parent module.

    They are the children with parameters that stand beside the encoder (or beside its `parts`,
    where a class with a head is its own base model), and the encoder's pooler. A bare encoder has
    none; nor has a model with an output embedding, which is tied to the encoder's and stays what
    it is.
    """
    encoder, pooler = model.base_model, anatomy.pooler
    alone = model is encoder and not anatomy.parts
    if alone or model.get_output_embeddings() is not None:
        return {}
    places: dict[str, nn.Module] = {
        name: model
        for name, child in model.named_children()
        if child is not encoder
        and not (model is encoder and name in anatomy.parts)
        and next(child.parameters(), None) is not None
    }
    if pooler is not None and isinstance(getattr(encoder, pooler, None), nn.Module):
        places[pooler] = encoder
    return places


class Heads(nn.Module):
    """The heads of one model's tasks, and the model's gate.

    The model's own head goes by the empty name.
    """

    OWN: Final = ""

    def __init__(self, model: PreTrainedModel, anatomy: Anatomy, gate: Gate) -> None:
        super().__init__()
        self.gate = gate
        self.offsets = Offsets(gate, model.config.hidden_size)
        self.places = tuple(head_places(model, anatomy))
        self.pooler = anatomy.pooler
        self.labels: dict[str, Labels] = {self.OWN: read_labels(model)}
        self.entries: dict[str, dict[str, Any]] = {}
        self.shown: tuple[str, ...] = (self.OWN,)
        # The modules in place; in a list, for they are children of the model.
        self.standing = [self._parent(model, place)._modules[place] for place in self.places]
        self._centre(model)
        # The output embedding, in a list for the same reason, and whose it is.
        output = model.get_output_embeddings()
        self.outputs: list[nn.Module] = [] if output is None else [output]
        self.model_class = type(model).__name__
        # The flags a user had set before; they are given back when all adapters are off.
        self.frozen_before = frozenset(
            key for key, parameter in model.named_parameters() if not parameter.requires_grad
        )
        self.train(model.training)

    def names(self) -> tuple[str, ...]:
        """Return the names of the adapters that have a head here."""
        return tuple(name for name in self.labels if name != self.OWN)

    def add(
        self,
        model: PreTrainedModel,
        name: str,
        labels: Labels | None,
        tensors: Mapping[str, Tensor] | None = None,
        made_for: str | None = None,
    ) -> None:
        """Make and park the head of adapter `name`, float32.

        Args:
            model: The model this belongs to.
            name: The adapter's name.
            labels: What it answers; None copies the model's own head with its labels.
            tensors: Weights of a saved head by ``place.parameter``; None for fresh ones. A model
                without a head takes a saved task without its head.
            made_for: Name of the model class the saved head belongs to.

        Raises:
            BaseModelError: If the model has no head, or `tensors` do not fit it.
            ConfigError: If labels are repeated, or `problem` is unknown.
        """
        if not self.places:
            if labels is not None and tensors is None:
                raise BaseModelError(
                    f"{type(model).__name__} has no head for the labels of {name!r}. Load the "
                    "encoder with a class that has one, e.g. AutoModelForSequenceClassification."
                )
            return
        facts = self.labels[self.OWN] if labels is None else labels
        if facts.problem is not None and facts.problem not in PROBLEMS:
            raise ConfigError(
                f"problem is {facts.problem!r} for {name!r}. Use one of {', '.join(PROBLEMS)}."
            )
        if len(set(facts.names)) < len(facts.names) or not facts.names:
            raise ConfigError(
                f"labels of {name!r} are {list(facts.names)}. Give each label once, at least one."
            )
        modules = self._copies(model) if labels is None else self._shaped(model, facts)
        if labels is not None and tensors is None:
            _initialise(modules, model)
        if tensors is not None:
            fill(
                modules,
                tensors,
                wrong=f"The head of {name!r} does not fit {type(model).__name__}",
                remedy="Load the encoder with the class it was trained with"
                + (f", {made_for}." if made_for else "."),
            )
        device = next(model.parameters()).device
        for place, module in modules.items():
            module.to(device=device, dtype=torch.float32)
            module.requires_grad_(False).train(model.training)
            # Float32 on a half-precision encoder: what comes in is cast to it.
            module.register_forward_pre_hook(_cast_inputs)
            self._park(name, place, module)
        self.labels[name] = facts
        names = dict(enumerate(facts.names))
        self.entries[name] = {
            "id2label": names,
            "label2id": {label: index for index, label in names.items()},
            "problem_type": facts.problem,
        }

    def show(self, model: PreTrainedModel, plan: Plan) -> None:
        """Put the heads of a plan in their place.

        Raises:
            CompositionError: If rows answer tasks whose heads differ in kind.
        """
        names = tuple(self.OWN if name is None else name for name in plan.heads)
        if names == self.shown:
            return
        shared = self._shared_entries(names) if len(names) > 1 else None
        if len(self.shown) == 1:
            # Read, not remembered: Hugging Face writes `problem_type` at the first loss.
            self.entries[self.shown[0]] = _config_entries(model)
        self.close(model)
        for place in self.places:
            parent = self._parent(model, place)
            if len(self.shown) == 1:
                self._park(self.shown[0], place, parent._modules[place])
            standing = (
                _Choosing(self, place) if shared else self._modules.pop(_key(names[0], place))
            )
            parent._modules[place] = standing
        self.standing = [self._parent(model, place)._modules[place] for place in self.places]
        self._centre(model)
        self.shown = names
        _write_config(model, shared or self.entries[names[0]])

    def reader(self, model: PreTrainedModel) -> nn.Module | None:
        """Return the part of the standing head that reads the encoder, None without a head.

        That is the pooler; else the first of the model's own, which hold them in the order of use.
        """
        if not self.places:
            return None
        place = self.pooler if self.pooler in self.places else self.places[0]
        return self._parent(model, place)._modules[place]

    def _centre(self, model: PreTrainedModel) -> None:
        reader = self.reader(model)
        if reader is not None:
            reader.register_forward_pre_hook(self.offsets.shift, with_kwargs=True)

    def close(self, model: PreTrainedModel) -> None:
        """Take the hook off the standing head."""
        reader = self.reader(model)
        if reader is not None:
            unhook(reader, self.offsets)

    def _shared_entries(self, names: Sequence[str]) -> dict[str, Any]:
        facts = [self.labels[name] for name in names]
        problems = {one.problem for one in facts}
        sizes = {len(one.names) for one in facts}
        # Of several labels and an unsaid problem Hugging Face makes classes, at the first loss.
        classes = problems <= {None, "single_label_classification"} and 1 not in sizes
        # Padded logits are classes of probability 0; other problems have no such thing.
        if not classes and (len(problems) > 1 or len(sizes) > 1):
            kinds = ", ".join(
                f"{name or 'the model itself'} ({one.problem or 'any problem'}, {len(one.names)})"
                for name, one in zip(names, facts, strict=True)
            )
            raise CompositionError(
                f"Rows answer tasks whose heads differ in kind: {kinds}. Route tasks of one "
                "problem; only single-label classes may differ in number."
            )
        labels = facts[0].names
        if len(set(facts)) > 1:
            labels = tuple(f"LABEL_{index}" for index in range(max(sizes)))
        ids = dict(enumerate(labels))
        return {
            "id2label": ids,
            "label2id": {label: index for index, label in ids.items()},
            "problem_type": facts[0].problem if len(problems) == 1 else PROBLEMS[0],
        }

    def modules_of(self, model: PreTrainedModel, name: str) -> dict[str, nn.Module]:
        """Return the modules of one head by place, wherever they stand now."""
        found: dict[str, nn.Module] = {}
        for place in self.places if name in self.labels else ():
            module = (
                self._parent(model, place)._modules[place]
                if self.shown == (name,)
                else self._modules[_key(name, place)]
            )
            assert module is not None
            found[place] = module
        return found

    def adopt(self, model: PreTrainedModel, name: str) -> None:
        """Make the head of adapter `name` the model's own, with the dtype of the one there was."""
        for place, own in self.modules_of(model, self.OWN).items():
            module = self.modules_of(model, name)[place]
            hooks = module._forward_pre_hooks
            for key in [key for key, hook in hooks.items() if hook is _cast_inputs]:
                del hooks[key]
            sample = next(own.parameters())
            module.to(sample.device, sample.dtype).train(own.training)
            self._park(self.OWN, place, module)
        self.labels[self.OWN], self.entries[self.OWN] = self.labels[name], _config_entries(model)

    def freeze_but(self, names: Collection[str]) -> None:
        """Freeze every head of this model but those of some adapters."""
        for module in self.standing:
            if module is not None:
                module.requires_grad_(self.shown[0] in names)
        for name in self.labels:
            for place in self.places:
                module = self._modules.get(_key(name, place))
                if module is not None:
                    module.requires_grad_(name in names)

    def undo(self, site: Site) -> None:
        """Let the couplings of a site be undone in front of this model's output embedding."""
        for output in self.outputs:
            hooks = output._forward_pre_hooks.values()
            if not any(getattr(hook, "__self__", None) is site for hook in hooks):
                output.register_forward_pre_hook(site.undo)

    def parked(self, name: str | None, place: str) -> nn.Module:
        """Return a head that does not stand in its place, None for the model's own."""
        module = self._modules[_key(name or self.OWN, place)]
        assert module is not None
        return module

    def remove(self, name: str) -> None:
        """Forget the parked head of adapter `name`."""
        del self.labels[name], self.entries[name]
        self.offsets.drop(name)
        for place in self.places:
            del self._modules[_key(name, place)]

    def _parent(self, model: PreTrainedModel, place: str) -> nn.Module:
        return model.base_model if place == self.pooler else model

    def _park(self, name: str, place: str, module: nn.Module | None) -> None:
        self._modules[_key(name, place)] = module

    def _shaped(self, model: PreTrainedModel, labels: Labels) -> dict[str, nn.Module]:
        """Build the head a model of this class would have for these labels, without memory."""
        config = copy.deepcopy(model.config)
        config.id2label = dict(enumerate(labels.names))
        config.label2id = {label: index for index, label in enumerate(labels.names)}
        with torch.device("meta"):
            twin = type(model)(config)
        modules: dict[str, nn.Module] = {}
        for place in self.places:
            module = self._parent(twin, place)._modules[place]
            assert module is not None
            modules[place] = module
        return modules

    def _copies(self, model: PreTrainedModel) -> dict[str, nn.Module]:
        self.close(model)  # a copied hook would hold a copy of all this
        own = self.modules_of(model, self.OWN)
        copies = {place: copy.deepcopy(module) for place, module in own.items()}
        self._centre(model)
        return copies


def check_output(output: nn.Module, width: int, vocab_size: int, model_class: str) -> None:
    """Refuse a coupling that the output embedding of a language model cannot undo.

    Raises:
        BaseModelError: If that reads another width than the embeddings give.
    """
    sizes = (getattr(output, "in_features", None), getattr(output, "out_features", None))
    if sizes != (width, vocab_size):
        raise BaseModelError(
            f"Invertible does not fit {model_class}: its embeddings are {width} wide, its "
            f"output embedding maps {sizes[0]} to {sizes[1]}, so the coupling cannot be undone "
            "there. Leave Invertible out."
        )


class _Choosing(nn.Module):
    """Stands at one place of a head while rows choose their task: each is answered by its own."""

    def __init__(self, heads: Heads, place: str) -> None:
        super().__init__()
        self._heads = (heads,)  # in a tuple: parked heads are no children of this
        self.place = place

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Answer each row by the head it chose; all arguments with rows are split."""
        (heads,) = self._heads
        flow = heads.gate.switch.flow()
        rows, plan = flow.rows, flow.plan
        if rows is None:
            raise CompositionError(
                "Rows choose their task in what is active, but this head was called outside of "
                "the model's own forward. Call the model itself: model(**batch, task=[...])."
            )

        def answer(index: int, at: Selector) -> Tensor:
            some = [_some(value, rows, at) for value in args]
            named = {key: _some(value, rows, at) for key, value in kwargs.items()}
            answered: Tensor = heads.parked(plan.heads[index], self.place)(*some, **named)
            return answered

        device = next(value.device for value in (*args, *kwargs.values()) if _is_rows(value, rows))
        if rows.known:
            groups = rows.groups(plan.partition, device)
            present = {index for index, _ in groups.parts}
            # As in a site: a head in training that no row chose takes part with no rows.
            absent = [
                (index, slice(0, 0))
                for index, name in enumerate(plan.heads)
                if index not in present and name in rows.trainable
            ]
            joined = torch.cat(
                _equally_wide([answer(index, at) for index, at in (*groups.parts, *absent)])
            )
            return joined if groups.back is None else joined.index_select(0, groups.back)
        result, *others = _equally_wide(
            [answer(index, slice(None)) for index in range(len(plan.heads))]
        )
        chosen = rows.classes(plan.partition, device).view(-1, *[1] * (result.dim() - 1))
        for index, other in enumerate(others, start=1):
            result = torch.where(chosen == index, other, result)
        return result


def _is_rows(value: Any, rows: Rows) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == rows.count


def _some(value: Any, rows: Rows, at: Selector) -> Any:
    return value[at] if _is_rows(value, rows) else value


def _equally_wide(answers: list[Tensor]) -> list[Tensor]:
    """Pad logits of fewer classes with the lowest number: their probability is 0."""
    widest = max(answer.shape[-1] for answer in answers)
    return [
        functional.pad(answer, (0, widest - answer.shape[-1]), value=torch.finfo(answer.dtype).min)
        for answer in answers
    ]


def _key(name: str, place: str) -> str:
    return f"@{name}:{place}"


def _cast_inputs(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next(module.parameters()).dtype
    return tuple(
        value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in inputs
    )


def _initialise(modules: Mapping[str, nn.Module], model: PreTrainedModel) -> None:
    """Give fresh weights to modules without memory, the model's own way."""
    for module in modules.values():
        module.to_empty(device="cpu")
        for part in module.modules():
            model._init_weights(part)


def fill(
    modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor], *, wrong: str, remedy: str
) -> None:
    """Load tensors named ``key.parameter`` into the modules of those keys; all must fit.

    Modules without memory (on the meta device) get it once that is known.

    Raises:
        BaseModelError: If one is missing, unknown or of another shape; the text begins with
            `wrong` and ends with `remedy`. Nothing was loaded then.
    """
    expected = {
        f"{key}.{name}": value
        for key, module in modules.items()
        for name, value in module.state_dict().items()
    }
    misfits = sorted(set(expected) ^ set(tensors)) or sorted(
        name for name, value in expected.items() if value.shape != tensors[name].shape
    )
    if misfits:
        raise BaseModelError(
            f"{wrong}: {misfits[0]!r} is missing, unknown or of another shape. {remedy}"
        )
    for key, module in modules.items():
        if any(value.is_meta for value in module.state_dict().values()):
            module.to_empty(device="cpu")
        module.load_state_dict({name: tensors[f"{key}.{name}"] for name in module.state_dict()})


def read_labels(model: PreTrainedModel) -> Labels:
    """Return what a model's configuration says about the head that is in place."""
    names = model.config.id2label
    return Labels(
        tuple(str(names[index]) for index in sorted(names)),
        getattr(model.config, "problem_type", None),
    )


def _config_entries(model: PreTrainedModel) -> dict[str, Any]:
    config = model.config
    return {key: getattr(config, key, None) for key in ("id2label", "label2id", "problem_type")}


def _write_config(model: PreTrainedModel, entries: Mapping[str, Any]) -> None:
    for key, value in entries.items():
        setattr(model.config, key, value)
    if hasattr(model, "num_labels"):
        model.num_labels = model.config.num_labels
