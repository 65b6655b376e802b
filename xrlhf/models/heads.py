"""What the numbers mean that a score layer gives for a response, and how they become one score."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedConfig

from xrlhf.errors import ConfigError, ModelError
from xrlhf.registry import MODELS
from xrlhf.structures import PackedBatch

__all__ = ["AttributeHead", "Head", "ScalarHead", "describe_head", "head_of_config"]

_CONFIG_KEY = "attribute_weights"
"""Where an exported ``config.json`` keeps the weights, in the order of its labels: it is written sorted by key."""


class Head(Protocol):
    """What a reward model asks of its head.

    Attributes:
        names: What the outputs are called; empty for a plain score.
        num_outputs: Numbers that the score layer gives for a response.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def num_outputs(self) -> int: ...

    def outputs(self, raw: Tensor) -> Tensor:
        """What the loss sees of (G, K, num_outputs)."""
        ...

    def scalar(self, outputs: Tensor) -> Tensor:
        """(G, K): the score."""
        ...

    def targets(self, batch: PackedBatch) -> Tensor:
        """What the data says of the outputs, in their shape, NaN where it says nothing."""
        ...


@MODELS.register_module()
class ScalarHead:
    """One score for each response; its targets are the ratings."""

    names: tuple[str, ...] = ()
    num_outputs: int = 1

    def outputs(self, raw: Tensor) -> Tensor:
        """(G, K) of (G, K, 1)."""
        return raw.squeeze(-1)

    def scalar(self, outputs: Tensor) -> Tensor:
        """The score as it is."""
        return outputs

    def targets(self, batch: PackedBatch) -> Tensor:
        """(G, K) ratings."""
        return batch.ratings


@MODELS.register_module()
class AttributeHead:
    """A prediction for each of several named attributes; the score is their weighted sum.

    The loss compares the predictions with the attributes of the data, one by one. Ranking, evaluation, scoring and
    export use the score, ``sum over attributes of weight * prediction``.

    Args:
        weights: By attribute, its weight in the score. The data set has to read the same names in the same order
            (``attributes`` of :class:`~xrlhf.data.dataset.GroupDataset`). A weight of 0 trains an attribute that does
            not count in the score.

    Raises:
        ConfigError: No attribute, a weight that is no finite number, or all weights 0.

    Reference:
        HelpSteer2, arXiv 2406.08673, section 3: one linear layer predicts five attributes, whose weighted sum ranks.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        if not isinstance(weights, Mapping) or not weights:
            raise ConfigError(f"AttributeHead: weights is {weights!r}; accepted is a number for each attribute by name")
        for name, weight in weights.items():
            is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool) and math.isfinite(weight)
            if not is_number or not isinstance(name, str):
                raise ConfigError(f"AttributeHead: the weight of {name!r} is {weight!r}; accepted is a finite number")
        if not any(weights.values()):
            raise ConfigError("AttributeHead: all weights are 0, so every score would be 0: give one a weight")
        self.weights = {name: float(weight) for name, weight in weights.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """The attributes, in the order of the outputs."""
        return tuple(self.weights)

    @property
    def num_outputs(self) -> int:
        """The number of attributes."""
        return len(self.weights)

    def outputs(self, raw: Tensor) -> Tensor:
        """(G, K, A), as the layer gives them."""
        return raw

    def scalar(self, outputs: Tensor) -> Tensor:
        """(G, K): the weighted sum over the last dimension."""
        columns = [weight * column for weight, column in zip(self.weights.values(), outputs.unbind(-1), strict=True)]
        return sum(columns[1:], columns[0])

    def targets(self, batch: PackedBatch) -> Tensor:
        """(G, K, A) attributes of the data.

        Raises:
            ConfigError: The data was read without them.
        """
        if batch.attributes is None or batch.attributes.shape[-1] != self.num_outputs:
            found = "none" if batch.attributes is None else batch.attributes.shape[-1]
            raise ConfigError(
                f"the model predicts {self.num_outputs} attributes and the data set reads {found}: give the data set "
                f"attributes={self.names!r}"
            )
        return batch.attributes

    def folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The score layer with one row that gives the score itself: the weighted sum of the layer's rows.

        Args:
            weight: (A, H).
            bias: (A,), or None.

        Returns:
            (1, H), and (1,) or None, of the same types; summed in float64.
        """
        row = weight.new_tensor(list(self.weights.values()), dtype=weight.double().dtype)
        folded = (row @ weight.double())[None].to(weight.dtype)
        return folded, None if bias is None else (row @ bias.double())[None].to(bias.dtype)


def describe_head(config: PreTrainedConfig, head: AttributeHead | None) -> None:
    """Let a config say what its score layer gives: one score, or the attributes of ``head``."""
    if hasattr(config, _CONFIG_KEY):
        delattr(config, _CONFIG_KEY)
    if head is None:
        config.num_labels = 1
        return
    config.num_labels = head.num_outputs
    config.id2label = dict(enumerate(head.names))
    config.label2id = {name: number for number, name in enumerate(head.names)}
    setattr(config, _CONFIG_KEY, list(head.weights.values()))


def head_of_config(config: PreTrainedConfig) -> ScalarHead | AttributeHead:
    """The head that an exported model says it has; a scalar one where it says nothing.

    Raises:
        ModelError: The config holds weights that make no head.
    """
    weights = getattr(config, _CONFIG_KEY, None)
    if weights is None:
        return ScalarHead()
    names = [name for _, name in sorted((config.id2label or {}).items())]
    if not isinstance(weights, list) or len(weights) != len(names):
        raise ModelError(
            f"{_CONFIG_KEY} of the model's config.json is {weights!r}: expected a list with a number for each of the "
            f"labels {', '.join(map(str, names))}"
        )
    try:
        return AttributeHead(dict(zip(names, weights, strict=True)))
    except ConfigError as error:
        raise ModelError(f"{_CONFIG_KEY} of the model's config.json: {error}") from error
