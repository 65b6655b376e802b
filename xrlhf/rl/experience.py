"""What a rollout leaves to be learnt from: answers as groups, and the values of their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from xrlhf.losses.kl import KLEstimator, kl_estimate
from xrlhf.rl.advantages import AdvantageEstimator
from xrlhf.rl.kl import KLControl
from xrlhf.rl.samples import PromptRow, Sample
from xrlhf.rl.scores import ScoreRule
from xrlhf.structures import TokenizedGroup, as_ids

__all__ = ["Appraiser", "Experience", "drawn_group"]

_FLOOR = 1e-12


def drawn_group(row: PromptRow, samples: Sequence[Sample]) -> TokenizedGroup:
    """A prompt and the answers drawn for it; every token of an answer is a target."""
    answers = tuple(as_ids(sample.ids) for sample in samples)
    is_target = np.ones(len(row.prompt_ids) + sum(len(ids) for ids in answers), dtype=bool)
    is_target[: len(row.prompt_ids)] = False
    return TokenizedGroup(as_ids(row.prompt_ids), answers, row=row.index, is_target=is_target)


@dataclass(frozen=True)
class Experience:
    """A rollout that is ready to be learnt from, the same on every process.

    Args:
        rollout: Its number, from 0.
        groups: Prompts with their answers, whose ``token_values`` the loss reads.
        metrics: What the log shows of it.
    """

    rollout: int
    groups: tuple[TokenizedGroup, ...]
    metrics: Mapping[str, float]

    def state(self) -> dict[str, Any]:
        """All of it in tensors and plain values, for a checkpoint."""
        pieces = [ids for group in self.groups for ids in (group.prompt_ids, *group.response_ids)]
        values = [group.token_values or {} for group in self.groups]
        return {
            "rollout": self.rollout,
            "metrics": {name: float(value) for name, value in self.metrics.items()},
            "ids": torch.from_numpy(np.concatenate(pieces).astype(np.int32)),
            "lengths": torch.tensor([len(ids) for ids in pieces]),
            "num_answers": torch.tensor([len(group.response_ids) for group in self.groups]),
            "prompts": torch.tensor([group.row for group in self.groups]),
            "token_values": {
                name: torch.from_numpy(np.concatenate([of[name] for of in values]).astype(np.float32))
                for name in values[0]
            },
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Experience:
        """What :meth:`state` was given by."""
        # Copies: a checkpoint's tensors lie in a file that may be deleted.
        pieces = np.split(state["ids"].numpy().copy(), np.cumsum(state["lengths"].numpy())[:-1])
        of_tokens = {name: values.numpy().copy() for name, values in state["token_values"].items()}
        groups, at, token = [], 0, 0
        for number, prompt in zip(state["num_answers"].tolist(), state["prompts"].tolist(), strict=True):
            ids, answers = pieces[at], tuple(pieces[at + 1 : at + 1 + number])
            length = sum(len(answer) for answer in answers)
            is_target = np.arange(len(ids) + length) >= len(ids)
            values = {name: array[token : token + length] for name, array in of_tokens.items()}
            groups.append(TokenizedGroup(ids, answers, row=prompt, is_target=is_target, token_values=values))
            at, token = at + 1 + number, token + length
        return cls(int(state["rollout"]), tuple(groups), dict(state["metrics"]))


class Appraiser:
    """Turns rewards and log-probabilities into advantages.

    Args:
        estimator: Makes advantages.
        scores: What becomes of rewards first.
        kl: Weight of the divergence from the reference in the reward of each token.
        kl_estimator: How it is estimated there.
    """

    def __init__(
        self, estimator: AdvantageEstimator, scores: ScoreRule, kl: KLControl, kl_estimator: KLEstimator = "k1"
    ) -> None:
        self.estimator = estimator
        self.scores = scores
        self.kl = kl
        self.kl_estimator = kl_estimator

    def appraise(
        self,
        rollout: int,
        groups: Sequence[TokenizedGroup],
        samples: Sequence[Sequence[Sample]],
        rewards: np.ndarray,
        token_values: Sequence[Mapping[str, np.ndarray]],
    ) -> Experience:
        """The rollout with its advantages; statistics that run on take it up.

        Args:
            rollout: Its number.
            groups: P prompts with K answers each.
            samples: The same answers as they were drawn.
            rewards: (P, K), NaN where no source said anything.
            token_values: Of each group, what :meth:`xrlhf.models.ActorCritic.token_values` gave.
        """
        num_answers = rewards.shape[1]
        lengths = np.array([len(sample.ids) for of_prompt in samples for sample in of_prompt])
        mask = np.arange(int(lengths.max())) < lengths[:, None]

        def padded(flat: np.ndarray) -> np.ndarray:
            rows = np.zeros(mask.shape)
            rows[mask] = flat
            return rows

        known = {name: np.concatenate([of[name] for of in token_values]) for name in token_values[0]}
        has_ended = np.array([sample.ending == "stop" for of_prompt in samples for sample in of_prompt])
        scores = self.scores.scores(rewards, has_ended.reshape(rewards.shape), lengths.reshape(rewards.shape))
        of_tokens = np.zeros(mask.shape)
        metrics: dict[str, float] = {}
        if self.scores.overlong is not None:
            metrics["overlong_share"] = float(self.scores.is_overlong(lengths).mean())
        if "reference" in known:
            estimates = _estimates(known, self.kl_estimator)
            of_tokens -= self.kl.coef * padded(estimates)
            metrics |= _kl_metrics(known, mask.sum(axis=1))
            metrics["kl_coef"] = self.kl.coef
        of_tokens[np.arange(len(lengths)), lengths - 1] += scores.reshape(-1)
        values = padded(known["old_values"]) if "old_values" in known else None
        estimate = self.estimator.estimate(of_tokens, mask, values, num_answers)
        learnt = {"old_logps": known["old_logps"], "advantages": estimate.advantages[mask]}
        if "reference" in known:
            learnt["reference"] = known["reference"]
            self.kl.update(metrics["kl_answer"], len(lengths))
        if estimate.returns is not None:
            learnt["old_values"], learnt["returns"] = known["old_values"], estimate.returns[mask]
            metrics["value_mean"] = float(known["old_values"].mean())
            if (explained := _explained_variance(known["old_values"], learnt["returns"])) is not None:
                metrics["explained_variance"] = explained
        gaps = np.abs(np.concatenate([sample.logps for of in samples for sample in of]) - known["old_logps"])
        metrics |= {
            **_reward_metrics(rewards, scores),
            "answer_length": float(lengths.mean()),
            "end_share": float(has_ended.mean()),
            # The mean of -log p over what was drawn; exact on average where temperature is 1 and nothing is cut off.
            "entropy": float(-known["old_logps"].mean()),
            "advantage_mean": float(learnt["advantages"].mean()),
            "advantage_std": float(learnt["advantages"].std()),
            "sampler_gap": float(gaps.mean()),
            "sampler_gap_max": float(gaps.max()),
        }
        return Experience(rollout, _with_values(groups, learnt), metrics)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of statistics that run on."""
        return {"kl": self.kl.state(), "scores": self.scores.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self.kl.load_state(state["kl"])
        self.scores.load_state(state["scores"])


def _estimates(known: Mapping[str, np.ndarray], estimator: KLEstimator) -> np.ndarray:
    policy, reference = (torch.from_numpy(known[name].astype(np.float64)) for name in ("old_logps", "reference"))
    return kl_estimate(policy, reference, estimator).numpy()


def _kl_metrics(known: Mapping[str, np.ndarray], lengths: np.ndarray) -> dict[str, float]:
    """Mean divergence of a token by two estimators, and of a whole answer."""
    plain = _estimates(known, "k1")
    return {
        "kl": float(plain.mean()),
        "kl_k3": float(_estimates(known, "k3").mean()),
        "kl_answer": float(plain.sum() / len(lengths)),
    }


def _reward_metrics(rewards: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    counted = ~np.isnan(rewards)
    found = {"unrewarded_share": float(1 - counted.mean())}
    if counted.any():
        found["reward"] = float(rewards[counted].mean())
        found["reward_std"] = float(rewards[counted].std())
        found["score"] = float(scores[counted].mean())
    return found


def _explained_variance(values: np.ndarray, returns: np.ndarray) -> float | None:
    """1 - var(R - V) / var(R); None where all returns are equal."""
    variance = float(returns.var())
    return None if variance < _FLOOR else 1 - float((returns - values).var()) / variance


def _with_values(groups: Sequence[TokenizedGroup], values: Mapping[str, np.ndarray]) -> tuple[TokenizedGroup, ...]:
    """The groups, each with its own share of values that lie one behind the other."""
    found, start = [], 0
    for group in groups:
        stop = start + sum(len(ids) for ids in group.response_ids)
        own = {name: np.ascontiguousarray(of[start:stop], dtype=np.float32) for name, of in values.items()}
        found.append(replace(group, token_values=own))
        start = stop
    return tuple(found)
