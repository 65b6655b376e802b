"""The model that a server serves: how its inputs are encoded and scored, and what can be said about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xrlhf.devices import find_device
from xrlhf.evaluation.scorer import Scorer
from xrlhf.models.embeddings import embedding_weight
from xrlhf.serving.activation import Activation, activation_of_config
from xrlhf.serving.inputs import InputEncoder
from xrlhf.serving.settings import ModelSettings
from xrlhf.structures import Group, TokenizedGroup
from xrlhf.version import __version__

__all__ = ["ServedModel"]


class ServedModel:
    """A reward model, ready to score what arrives.

    Args:
        scorer: The model, its tokenizer and its device.
        settings: What the server was told about it.

    Attributes:
        name: What answers call it.
        label: What the config calls its score.
        encoder: Turns inputs into token ids.
        token_budget: Most tokens of one forward pass.
        has_template: Whether there is a chat template, so that texts may have roles.
        activation: What its config asks servers to do to its scores.
    """

    def __init__(self, scorer: Scorer, settings: ModelSettings) -> None:
        self._scorer = scorer
        self._settings = settings
        config = scorer.model.hf_model.config
        tokenizer = scorer.encoder.tokenizer
        self.name = settings.served_name
        self.label = str((getattr(config, "id2label", None) or {}).get(0, "LABEL_0"))
        self.token_budget = scorer.token_budget
        self.has_template = tokenizer.chat_template is not None
        self.activation: Activation = activation_of_config(config)
        self.encoder = InputEncoder(
            tokenizer,
            max_length=scorer.encoder.max_length,
            vocab_size=len(embedding_weight(scorer.model.hf_model)),
        )

    @classmethod
    def load(cls, settings: ModelSettings, *, worker: int = 0) -> ServedModel:
        """Load the model, and compute once what the first request would otherwise wait for.

        Args:
            settings: What to load.
            worker: Number of this process, which chooses its device where there are several.

        Raises:
            ModelError: It cannot be loaded, or is no reward model.
            DeviceError: The device cannot be used.
        """
        device = find_device(settings.device)
        device.set_device(worker)
        scorer = Scorer.from_pretrained(
            settings.path,
            device=device,
            dtype=settings.dtype,
            max_length=settings.max_length,
            token_budget=settings.token_budget,
        )
        scorer.score([Group("", ("Ready?",))])
        return cls(scorer, settings)

    @property
    def shares_prompts(self) -> bool:
        """Whether what conversations begin with alike is computed once."""
        return self._scorer.model.layout == "packed"

    def compute(self, groups: Sequence[TokenizedGroup]) -> list[list[float]]:
        """Raw scores of groups in one forward pass."""
        return self._scorer.score_together(groups)

    def describe(self) -> dict[str, Any]:
        """What a client may need to know of the model."""
        config = self._scorer.model.hf_model.config
        tokenizer = self._scorer.encoder.tokenizer
        head = self._scorer.model.head
        limit = self._scorer.encoder.max_length
        return {
            "model": self.name,
            "revision": getattr(config, "_commit_hash", None),
            "architecture": type(self._scorer.model.hf_model).__name__,
            "dtype": self._settings.dtype,
            "device": self._scorer.device.name,
            "max_length": limit if self._settings.max_length or self._scorer.model.max_conversation_length else None,
            "label": self.label,
            "attributes": list(head.names),
            "has_chat_template": self.has_template,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "mean": getattr(config, "mean", None),
            "std": getattr(config, "std", None),
            "problem_type": getattr(config, "problem_type", None),
            "shares_prompts": self.shares_prompts,
            "version": __version__,
        }
