"""A sentence classifier that reads the mean over tokens, the right head for sentence encoders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from adapterx.anatomy import anatomy_of
from adapterx.errors import BaseModelError

__all__ = ["MeanPoolingForSequenceClassification", "mean_over_tokens"]


class MeanPoolingConfig(PretrainedConfig):
    """Stands for the encoder's own configuration where transformers asks a class for one."""

    model_type = "adapterx-mean-pooling"


class MeanPoolingForSequenceClassification(PreTrainedModel):
    """Any known encoder with a linear classifier on the mean of its token vectors.

    Hugging Face's classes read the first token, or a pooler on it; an encoder trained by mean
    pooling (the E5 family, most sentence encoders) has nothing there. Loads from the encoder's
    own folder or Hub id with ``from_pretrained``, and works with ``pipeline`` and ``Trainer``.
    """

    config_class = MeanPoolingConfig
    base_model_prefix = "base"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        anatomy = anatomy_of(config.model_type)
        if anatomy.decoder is not None:
            raise BaseModelError(
                f"{type(self).__name__} reads an encoder alone; {config.model_type!r} has a "
                "decoder too. Use the family's own …ForSequenceClassification."
            )
        without = {"add_pooling_layer": False} if anatomy.pooler else {}
        # What this class can do, the encoder inside may not; transformers asked this class only.
        sdpa = AutoModel._model_mapping[type(config)]._supports_sdpa
        eager = {} if sdpa else {"attn_implementation": "eager"}
        self.base = AutoModel.from_config(config, **without, **eager)
        dropout = getattr(config, "classifier_dropout", None)
        self.dropout = nn.Dropout(0.1 if dropout is None else dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *model_args: Any, config: Any = None, **kwargs: Any
    ) -> MeanPoolingForSequenceClassification:
        """Load the encoder's weights; see ``PreTrainedModel.from_pretrained``."""
        if config is None:
            # Keys of the configuration (num_labels, id2label, ...) go there, the rest onwards.
            where = {key: value for key, value in kwargs.items() if key in ("revision", "token")}
            config, kwargs = AutoConfig.from_pretrained(
                pretrained_model_name_or_path, return_unused_kwargs=True, **kwargs
            )
            kwargs = {**kwargs, **where}
        # A folder saved with another head has the encoder under the family's own name: "bert.".
        prefix = AutoModel._model_mapping[type(config)].base_model_prefix
        kwargs["key_mapping"] = {rf"^{prefix}\.": "base.", **(kwargs.get("key_mapping") or {})}
        model: MeanPoolingForSequenceClassification = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, config=config, **kwargs
        )
        return model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Classify each row.

        Args:
            input_ids: ``(batch, sequence)``, int64.
            attention_mask: ``(batch, sequence)``, 1 for tokens, 0 for padding; None for no padding.
            inputs_embeds: ``(batch, sequence, hidden)`` in place of `input_ids`.
            labels: ``(batch,)`` int64; ``(batch, labels)`` float for several labels a row;
                ``(batch,)`` float for regression.
            kwargs: Passed to the encoder.

        Returns:
            Logits ``(batch, labels)`` and, with `labels`, the loss.
        """
        outputs = self.base(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        states: Tensor = outputs.last_hidden_state
        mean = mean_over_tokens(states, attention_mask)
        logits: Tensor = self.classifier(self.dropout(mean.to(states.dtype)))
        loss = None if labels is None else self._loss(logits, labels)
        return SequenceClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        problem = self.config.problem_type
        if problem == "regression" or (problem is None and self.num_labels == 1):
            return functional.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
        if problem == "multi_label_classification":
            return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return functional.cross_entropy(logits, labels)


def mean_over_tokens(states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Return the mean of the token vectors of each row.

    Args:
        states: ``(batch, sequence, hidden)``, any float dtype.
        attention_mask: ``(batch, sequence)``, 1 for tokens, 0 for padding; None for no padding.

    Returns:
        ``(batch, hidden)``, float32; zeros for a row without tokens.
    """
    if attention_mask is None:
        attention_mask = torch.ones(states.shape[:2], device=states.device)
    # Summed in float32: a mean over many tokens loses digits in half precision.
    weights = attention_mask.unsqueeze(-1).to(torch.float32)
    return (states.float() * weights).sum(1) / weights.sum(1).clamp(min=1.0)


# `pipeline("text-classification")` complains of a class it has not been told of.
AutoModelForSequenceClassification.register(
    MeanPoolingConfig, MeanPoolingForSequenceClassification, exist_ok=True
)
