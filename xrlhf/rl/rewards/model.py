"""A reward model in this process, of any tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xrlhf.data.encoding import Truncation
from xrlhf.data.reasons import RowError
from xrlhf.devices import Device, find_device
from xrlhf.errors import RewardError, UserError
from xrlhf.evaluation.scorer import Scorer
from xrlhf.registry import REWARDS
from xrlhf.rl.rewards.answers import check_weight, group_of_samples, place_of, response_of, reward_table
from xrlhf.rl.samples import PromptRow, Sample
from xrlhf.structures import Group

__all__ = ["RewardModelReward"]


@REWARDS.register_module()
class RewardModelReward:
    """The score of a reward model.

    Policy and reward model need not share a tokenizer: what passes between them is the conversation, which the reward
    model's own chat template renders. A prompt is computed once for all of its answers.

    Args:
        path: A reward model: a directory or a hub name, of a model or of an adapter with its head.
        weight: What its score counts in the sum of all rewards; any finite number.
        name: What the log calls it.
        device: Where it computes: a device by name, such as ``"cpu"``; that of the policy if None (the builder puts it
            in), or the first that is found.
        dtype: Type its weights are held in.
        max_length: Most tokens of one conversation; the model's own limit if None.
        truncation: For longer ones: ``"prompt"`` cuts the prompt's beginning, ``"end"`` the answer's end, ``"drop"``
            does not score them.
        unscored: The reward of an answer that cannot be scored, because it is too long or the chat template refuses
            it; None stops the run.
        token_budget: Most tokens of one forward pass.
        trust_remote_code: Run the repository's own code. Only for sources you trust.

    Raises:
        ModelError: Nothing loadable there, or the model has no score head of its own.
        ConfigError: ``weight`` is not a finite number.
        DeviceError: There is no such device here.
    """

    def __init__(
        self,
        path: str,
        *,
        weight: float = 1.0,
        name: str = "reward_model",
        device: Device | str | None = None,
        dtype: str = "float32",
        max_length: int | None = None,
        truncation: Truncation = "prompt",
        unscored: float | None = None,
        token_budget: int = 16384,
        trust_remote_code: bool = False,
    ) -> None:
        self.name = name
        self.weight = check_weight(name, weight)
        self.path = path
        self.unscored = unscored
        self.scorer = Scorer.from_pretrained(
            path,
            device=find_device(device) if isinstance(device, str) else device,
            dtype=dtype,
            max_length=max_length,
            truncation=truncation,
            token_budget=token_budget,
            trust_remote_code=trust_remote_code,
        )

    def rewards(self, rows: Sequence[PromptRow], samples: Sequence[Sequence[Sample]]) -> np.ndarray:
        """(rows, K) float32, raw scores.

        Raises:
            RewardError: An answer cannot be scored and ``unscored`` is None, or the scores are not finite.
        """
        groups = [group_of_samples(row, drawn) for row, drawn in zip(rows, samples, strict=True)]
        asked = [group if len(group.responses) > 1 else _beside_nothing(group) for group in groups]
        try:
            found = [
                result[: len(group.responses)] if not isinstance(result, RowError) else self._apart(row, group)
                for row, group, result in zip(rows, groups, self.scorer.score(asked), strict=True)
            ]
        except UserError as error:
            raise RewardError(f"reward model {self.path}: {error}") from error
        return reward_table(samples, found)

    def _apart(self, row: PromptRow, group: Group) -> list[float]:
        """Scores of a group that cannot be scored as a whole, answer by answer."""
        scores = []
        singles = [_beside_nothing(Group(group.prompt, (response,), meta=group.meta)) for response in group.responses]
        for number, result in enumerate(self.scorer.score(singles)):
            if not isinstance(result, RowError):
                scores.append(result[0])
            elif self.unscored is not None:
                scores.append(self.unscored)
            else:
                raise RewardError(
                    f"reward model {self.path}: {place_of(row, number)} cannot be scored ({result}); set unscored to "
                    "the reward that such answers are to get"
                )
        return scores


def _beside_nothing(group: Group) -> Group:
    """A single answer with an empty one beside it: so it is known where the prompt ends, which alone may be cut."""
    nothing = response_of(group.prompt, "")
    return Group(group.prompt, (*group.responses, nothing), meta=group.meta)
