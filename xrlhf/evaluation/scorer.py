"""Scores of conversations by a trained reward model, prompts shared and lengths sorted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xrlhf.data.encoding import GroupEncoder, Truncation
from xrlhf.data.packing import pack
from xrlhf.data.plan import plan_whole_set
from xrlhf.data.reasons import RowError
from xrlhf.devices import Device, find_device
from xrlhf.errors import ModelError
from xrlhf.models.adapters import tokenizer_location
from xrlhf.models.internlm2 import InternLM2ForRewardModel
from xrlhf.models.loading import backbone_from_pretrained, check_vocabulary
from xrlhf.models.reward_model import RewardModel
from xrlhf.models.tokenizer import read_tokenizer, set_ending
from xrlhf.structures import Group, TokenizedGroup

__all__ = ["Scorer"]

_NO_LIMIT = 1 << 20


class Scorer:
    """Scores groups of conversations.

    Args:
        model: The reward model, in eval mode on its device.
        tokenizer: The tokenizer it was exported with.
        device: The device it is on.
        max_length: Most tokens of one conversation; the model's own limit if None.
        truncation: What to do with longer ones; ``"drop"`` refuses them.
        token_budget: Most tokens of one forward pass.

    Raises:
        ModelError: ``max_length`` is more than the model can read.
    """

    def __init__(
        self,
        model: RewardModel,
        tokenizer: PreTrainedTokenizerBase,
        device: Device,
        *,
        max_length: int | None = None,
        truncation: Truncation = "drop",
        token_budget: int = 16384,
    ) -> None:
        self.model = model
        self.device = device
        self.token_budget = token_budget
        limit = model.max_conversation_length
        if max_length is None:
            max_length = limit or _NO_LIMIT
        elif limit is not None and max_length > limit:
            raise ModelError(f"max_length is {max_length}, but the model reads at most {limit} tokens")
        self.encoder = GroupEncoder(tokenizer, max_length=max_length, truncation=truncation)

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        device: Device | None = None,
        dtype: str = "float32",
        max_length: int | None = None,
        truncation: Truncation = "drop",
        token_budget: int = 16384,
        trust_remote_code: bool = False,
    ) -> Scorer:
        """Load a reward model, or an adapter with its head, from a Hugging Face directory or the hub.

        Raises:
            ModelError: Nothing loadable there, or the model has no score head of its own.
        """
        if device is None:
            device = find_device()
            device.set_device(0)
        backbone = backbone_from_pretrained(path, dtype=dtype, trust_remote_code=trust_remote_code, require_head=True)
        tokenizer = read_tokenizer(tokenizer_location(path), trust_remote_code=trust_remote_code)
        check_vocabulary(backbone, tokenizer)
        _end_with_reward_token(backbone, tokenizer)
        model = RewardModel(backbone, static_shapes=device.static_shapes).to(device.torch_device).eval()
        return cls(model, tokenizer, device, max_length=max_length, truncation=truncation, token_budget=token_budget)

    def score(self, groups: Sequence[Group]) -> list[list[float] | RowError]:
        """Scores of every response of every group, in order; a :class:`RowError` for a group that cannot be scored.

        Scores are raw float32 values: no sigmoid, no normalisation.

        Raises:
            ModelError: A score is not finite.
        """
        return self.score_encoded(self.encode(groups))

    def encode(self, groups: Sequence[Group]) -> list[TokenizedGroup | RowError]:
        """The groups as tokens, for :meth:`score_encoded`; apart from it, so that a thread can do it ahead of time."""
        return self.encoder.encode(groups, keep_identical=True)

    def score_encoded(self, encoded: Sequence[TokenizedGroup | RowError]) -> list[list[float] | RowError]:
        """What :meth:`score` gives, from groups that :meth:`encode` made.

        Raises:
            ModelError: A score is not finite.
        """
        results: list[list[float] | RowError] = [item if isinstance(item, RowError) else [] for item in encoded]
        usable = [(i, item) for i, item in enumerate(encoded) if isinstance(item, TokenizedGroup)]
        if not usable:
            return results
        lengths = np.array([item.num_tokens for _, item in usable])
        for members in plan_whole_set(lengths, world_size=1, token_budget=self.token_budget)[0]:
            scores = self.score_together([usable[int(m)][1] for m in members])
            if not np.isfinite([score for row in scores for score in row]).all():
                raise ModelError(
                    "the model gives scores that are not finite: its weights are damaged, or too large for its dtype"
                )
            for row, member in zip(scores, members, strict=True):
                results[usable[int(member)][0]] = row
        return results

    def score_together(self, groups: Sequence[TokenizedGroup]) -> list[list[float]]:
        """Scores of groups in one forward pass, whatever their number of tokens; they may be anything but numbers."""
        batch = pack(groups).to(self.device.torch_device)
        with torch.inference_mode():
            scores = self.model.score(batch).cpu()
        return [row[: len(group.response_ids)] for row, group in zip(scores.tolist(), groups, strict=True)]


def _end_with_reward_token(backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let conversations end with the token that the model's config names, as published InternLM2 models are read."""
    if not isinstance(backbone, InternLM2ForRewardModel) or tokenizer.chat_template is None:
        return
    index = backbone.config.reward_token_id
    token = next((token for token, found in tokenizer.get_vocab().items() if found == index), None)
    if token is None:
        raise ModelError(
            f"config.json has reward_token_id {index}, which is no token of the tokenizer beside it: set it to the "
            "token that conversations were trained to end with"
        )
    set_ending(tokenizer, token)
