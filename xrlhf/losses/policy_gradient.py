"""Losses of reinforcement learning on the tokens of drawn answers: PPO's clipped objective and its descendants."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from xrlhf.errors import ConfigError
from xrlhf.losses.kl import check_kl_estimator, kl_estimate
from xrlhf.losses.options import number_option
from xrlhf.registry import LOSSES

__all__ = ["DrawnTokens", "Normalise", "PolicyGradientLoss", "RatioLevel", "answer_means"]

Normalise = Literal["tokens", "answers", "constant"]
"""What a step's loss is a mean over: every token alike; every answer alike, its tokens sharing its weight; every
answer, its sum of tokens divided by one constant."""

RatioLevel = Literal["token", "answer"]
"""Whose importance ratio is clipped: each token's, or the geometric mean over the answer's tokens."""

_MOST = 20.0


class DrawnTokens(NamedTuple):
    """The tokens of drawn answers, and what is known of each.

    Args:
        logps: (N,) float32, of the policy as it is now; the loss is differentiated with respect to them.
        old_logps: (N,) float32, of the policy that drew them.
        advantages: (N,) float32.
        answer: (N,) int64, the answer that each belongs to, from 0.
        num_answers: Number of answers, those without a token included.
        reference: (N,) float32, of the reference; None where there is none.
        entropy: (N,) float32, of the policy's distribution at each; None where nobody asked.
    """

    logps: Tensor
    old_logps: Tensor
    advantages: Tensor
    answer: Tensor
    num_answers: int
    reference: Tensor | None = None
    entropy: Tensor | None = None


def answer_means(values: Tensor, answer: Tensor, num_answers: int) -> tuple[Tensor, Tensor]:
    """The mean of a value over the tokens of each answer, and how many tokens it has.

    Args:
        values: (N,) float.
        answer: (N,) int64.
        num_answers: Number of answers.

    Returns:
        (num_answers,) means, 0 where an answer has no token, and (num_answers,) counts, at least 1.
    """
    ones = torch.ones_like(values)
    count = values.new_zeros(num_answers).index_add(0, answer, ones).clamp(min=1)
    return values.new_zeros(num_answers).index_add(0, answer, values) / count, count


@LOSSES.register_module()
class PolicyGradientLoss(nn.Module):
    """PPO's clipped objective on the tokens of drawn answers, with the variants that came after it.

    With q = exp(log p - log p_old) of a token and its advantage A::

        loss = -min(q * A, clip(q, 1 - clip, 1 + clip_high) * A) + kl_coef * KL - entropy_coef * H

    Where A < 0, ``dual_clip`` = c keeps the first term at -c * A at most. With ``ratio="answer"`` q is the geometric
    mean over the answer's tokens (GSPO).

    Reduction: see ``normalise``; a step's loss is divided by its number of tokens or answers over all processes, so
    that it does not depend on how the step was divided into micro-batches.

    Args:
        clip: How far q may fall below 1 before the gradient ends, from 0 to 1.
        clip_high: How far it may rise above 1; as ``clip`` if None. DAPO takes 0.28 beside 0.2.
        dual_clip: c, greater than 1; None for no bound.
        ratio_threshold: Tokens whose q is above it have no part in the loss; greater than 1, None for no limit.
        kl_coef: Weight of the divergence from the reference as a term of the loss, 0 or greater. It may stand in the
            reward instead, see :class:`~xrlhf.engine.loops.RLTrainLoop`.
        kl_estimator: ``"k2"`` or ``"k3"``; the gradient of ``"k1"`` is 0 on average, so that it would hold nothing.
        entropy_coef: Weight of the entropy, 0 or greater: keeps the policy from becoming certain too soon.
        normalise: ``"tokens"`` weighs every token of a step alike (DAPO); ``"answers"`` every answer, by the mean over
            its tokens (GRPO as published); ``"constant"`` every answer by its sum over ``constant_length`` (Dr. GRPO).
        constant_length: Most tokens of an answer, for ``normalise="constant"``.
        ratio: ``"token"``, or ``"answer"`` for GSPO.

    Attributes:
        unit: What the loss of a step is divided by.

    Raises:
        ConfigError: An option has a value that is not accepted.

    Reference:
        PPO: Schulman et al., arXiv 1707.06347, equation 7. Dual clip: Ye et al., arXiv 1912.09729, equation 5. GRPO:
        arXiv 2402.03300, equation 3. DAPO: arXiv 2503.14476, equations 8 and 12. Dr. GRPO: arXiv 2503.20783, section
        3.2. GSPO: arXiv 2507.18071, equations 5 to 7. Ratio threshold: the PPO trainers of huggingface/trl up to 0.11
        (trl/trainer/ppo_trainer.py), there for a whole batch, here for each token, since a micro-batch must not
        decide over others.
    """

    def __init__(
        self,
        clip: float = 0.2,
        clip_high: float | None = None,
        dual_clip: float | None = None,
        ratio_threshold: float | None = None,
        kl_coef: float = 0.0,
        kl_estimator: str = "k3",
        entropy_coef: float = 0.0,
        normalise: Normalise = "tokens",
        constant_length: int | None = None,
        ratio: RatioLevel = "token",
    ) -> None:
        super().__init__()
        name = "PolicyGradientLoss"
        self.clip = number_option(name, "clip", clip, exclusive=True, below=1.0)
        high = self.clip if clip_high is None else clip_high
        self.clip_high = number_option(name, "clip_high", high, exclusive=True)
        self.dual_clip = (
            None if dual_clip is None else number_option(name, "dual_clip", dual_clip, minimum=1.0, exclusive=True)
        )
        self.ratio_threshold = (
            None
            if ratio_threshold is None
            else number_option(name, "ratio_threshold", ratio_threshold, minimum=1.0, exclusive=True)
        )
        self.kl_coef = number_option(name, "kl_coef", kl_coef)
        self.kl_estimator = check_kl_estimator(name, "kl_estimator", kl_estimator)
        if self.kl_coef and kl_estimator == "k1":
            raise ConfigError(
                f"{name}: kl_estimator is 'k1', whose gradient is 0 on average in a loss; take 'k3' or 'k2', or put k1 "
                "into the reward (train_cfg.kl_coef)"
            )
        self.entropy_coef = number_option(name, "entropy_coef", entropy_coef)
        for option, value, accepted in (
            ("normalise", normalise, get_args(Normalise)),
            ("ratio", ratio, get_args(RatioLevel)),
        ):
            if value not in accepted:
                raise ConfigError(f"{name}: {option} is {value!r}; accepted are {', '.join(map(repr, accepted))}")
        if (normalise == "constant") != (constant_length is not None):
            raise ConfigError(
                f"{name}: normalise='constant' and constant_length belong together: give the most tokens of an answer "
                "with it, and leave it out otherwise"
            )
        self.constant_length = (
            None if constant_length is None else number_option(name, "constant_length", constant_length, exclusive=True)
        )
        self.normalise = normalise
        self.ratio = ratio
        self.unit = "targets" if normalise == "tokens" else "responses"

    @property
    def needs_reference(self) -> bool:
        """Whether the loss reads a reference."""
        return self.kl_coef > 0

    def weights(self, tokens: DrawnTokens) -> Tensor:
        """(N,) what each token's loss is multiplied by before the sum over a step is divided by its units."""
        if self.constant_length is not None:
            return torch.full_like(tokens.old_logps, 1 / self.constant_length)
        if self.normalise == "tokens":
            return torch.ones_like(tokens.old_logps)
        _, count = answer_means(tokens.old_logps, tokens.answer, tokens.num_answers)
        return 1 / count[tokens.answer]

    def log_ratios(self, tokens: DrawnTokens) -> Tensor:
        """(N,) log q."""
        log_ratio = tokens.logps - tokens.old_logps
        if self.ratio == "answer":
            log_ratio = answer_means(log_ratio, tokens.answer, tokens.num_answers)[0][tokens.answer]
        return log_ratio.clamp(-_MOST, _MOST)

    def forward(self, tokens: DrawnTokens) -> Tensor:
        """(N,) the loss of each token, not yet multiplied by :meth:`weights`."""
        ratio, advantages = self.log_ratios(tokens).exp(), tokens.advantages
        objective = torch.minimum(ratio * advantages, ratio.clamp(1 - self.clip, 1 + self.clip_high) * advantages)
        if self.dual_clip is not None:
            bounded = torch.maximum(objective, self.dual_clip * advantages)
            objective = torch.where(advantages < 0, bounded, objective)
        loss = -objective
        if self.kl_coef:
            assert tokens.reference is not None
            loss = loss + self.kl_coef * kl_estimate(tokens.logps, tokens.reference, self.kl_estimator)
        if self.entropy_coef:
            assert tokens.entropy is not None
            loss = loss - self.entropy_coef * tokens.entropy
        if self.ratio_threshold is not None:
            loss = torch.where(ratio > self.ratio_threshold, 0.0, loss)
        return loss

    @torch.no_grad()
    def statistics(self, tokens: DrawnTokens) -> dict[str, Tensor]:
        """Values of each token by name, (N,), that the log shows the means of."""
        log_ratio = self.log_ratios(tokens)
        is_clipped = torch.where(
            tokens.advantages > 0,
            log_ratio > math.log1p(self.clip_high),
            (log_ratio < math.log1p(-self.clip)) & (tokens.advantages < 0),
        )
        found = {
            "ratio_mean": log_ratio.exp(),
            # KL(old || new) by k3: the old policy drew the tokens.
            "kl_update": kl_estimate(tokens.old_logps, tokens.logps, "k3"),
            "clip_share": is_clipped.float(),
        }
        if tokens.reference is not None:
            found["kl_now"] = kl_estimate(tokens.logps, tokens.reference, "k3")
        if tokens.entropy is not None:
            found["entropy_now"] = tokens.entropy
        return found

    def extra_repr(self) -> str:
        return f"clip={self.clip:g}, clip_high={self.clip_high:g}, kl_coef={self.kl_coef:g}, ratio={self.ratio}"
