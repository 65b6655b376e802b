"""A language model's output layer, asked for the log-probabilities of chosen tokens in the place of all logits."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from xrlhf.errors import ModelError, error_line
from xrlhf.models.embeddings import embedding_weight
from xrlhf.models.shapes import are_shapes_alone
from xrlhf.ops.log_probs import chosen_log_probs, token_entropies

__all__ = ["ChoosingLinear", "choosing_output_layer"]

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_LOW_PRECISION_TOLERANCE = 0.1


class ChoosingLinear(nn.Linear):
    """An output layer that gives all logits, the log-probabilities of tokens that it is told, or entropies.

    It is called as a module either way, so that whatever a strategy hangs on it (weights that have to be fetched
    first) happens as in any forward pass.

    Attributes:
        scale: What the model multiplies its logits with.
        softcap: What it caps them at; None for no cap.
        dtype: Type of the matrix products for log-probabilities.
    """

    scale: float = 1.0
    softcap: float | None = None
    dtype: torch.dtype = torch.float32

    def forward(self, hidden: Tensor, chosen: Tensor | None = None, entropy: bool = False) -> Tensor:
        """Logits of (..., H), which the model scales and caps itself; or of states (N, H) the log-probability of (N,)
        ``chosen`` tokens, or the ``entropy`` of each distribution, (N,), float32, scaled and capped."""
        if entropy:
            return token_entropies(
                hidden, self.weight, bias=self.bias, scale=self.scale, softcap=self.softcap, dtype=self.dtype
            )
        if chosen is None:
            return super().forward(hidden)
        return chosen_log_probs(
            hidden, self.weight, chosen, bias=self.bias, scale=self.scale, softcap=self.softcap, dtype=self.dtype
        )


def choosing_output_layer(model: PreTrainedModel, dtype: torch.dtype) -> ChoosingLinear:
    """The output layer of a language model, made one that can be asked for chosen tokens; its weights stay.

    Args:
        model: A ``...ForCausalLM`` model.
        dtype: Type of the matrix products.

    Raises:
        ModelError: The model has no plain linear output layer, or makes logits of it in a way that is not known here.
    """
    layer = model.get_output_embeddings()
    if type(layer) not in (nn.Linear, ChoosingLinear):
        raise ModelError(f"{type(model).__name__} has no linear output layer, so it cannot be trained as a policy")
    layer.__class__ = ChoosingLinear
    config = model.config.get_text_config()
    divisor = getattr(config, "logits_scaling", None)
    layer.scale = float(getattr(config, "logit_scale", None) or (1 / divisor if divisor else 1.0))
    layer.softcap = getattr(config, "final_logit_softcapping", None)
    layer.dtype = model.dtype
    _check(model, layer)
    layer.dtype = dtype
    return cast(ChoosingLinear, layer)


@torch.no_grad()
def _check(model: PreTrainedModel, layer: ChoosingLinear) -> None:
    """Compare with the model's own logits on a few tokens."""
    weight = embedding_weight(model)
    if are_shapes_alone(weight):
        return
    ids = torch.randint(1, len(weight), (1, 6), generator=torch.Generator().manual_seed(0)).to(weight.device)
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    was_training = model.training
    model.eval()
    try:
        logits = model(input_ids=ids, use_cache=False).logits
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{type(model).__name__} cannot read a plain sequence of tokens: {error_line(error)}"
        ) from error
    finally:
        handle.remove()
        model.train(was_training)
    expected = logits[0, :-1].float().log_softmax(dim=1).gather(1, ids[0, 1:, None]).squeeze(1)
    found = layer(seen[0].reshape(-1, seen[0].shape[-1])[:5], chosen=ids[0, 1:])
    tolerance = _TOLERANCE.get(model.dtype, _LOW_PRECISION_TOLERANCE)
    if not torch.allclose(found, expected, rtol=tolerance, atol=tolerance):
        raise ModelError(
            f"{type(model).__name__} makes logits in a way that is not known here (log-probabilities differ by "
            f"{float((found - expected).abs().max()):.2g}), so it cannot be trained as a policy"
        )
