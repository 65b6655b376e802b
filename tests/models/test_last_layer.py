"""The last layer's feed-forward runs on the tokens that are read, and on nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import random_groups, scores_alone, tiny_backbone
from torch import Tensor, nn

from xrlhf.data.packing import pack
from xrlhf.losses import RankingLoss
from xrlhf.models.flops import matrix_flops
from xrlhf.models.last_layer import ShortLastLayer, read_index, shortened_module
from xrlhf.models.reward_model import RewardModel


def lengths_seen(model: RewardModel, call: Any) -> list[int]:
    """Tokens that each layer's feed-forward is given."""
    seen: list[int] = []

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].shape[1])

    layers = model.hf_model.model.layers
    handles = [layer.mlp.register_forward_pre_hook(note) for layer in layers]
    call()
    for handle in handles:
        handle.remove()
    return seen


def test_read_are_the_ends_of_all_segments() -> None:
    """Prompts of 7 and 3; responses of 4 and 6, of 1, 5 and 2: ends at 7, 11, 17, 20, 21, 26, 28."""
    batch = pack(random_groups()[:2])
    assert read_index(batch.segments, torch.device("cpu")).tolist() == [6, 10, 16, 19, 20, 25, 27]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_last_feed_forward_sees_the_ends_of_segments(checkpointing: bool) -> None:
    model = RewardModel(tiny_backbone(), loss=RankingLoss(), gradient_checkpointing=checkpointing).train()
    batch = pack(random_groups())
    whole, ends = batch.num_tokens, len(batch.segments)
    seen = lengths_seen(model, lambda: model(batch).loss.backward())
    # Recomputed in the backward pass, the last layer first.
    assert seen == [whole, ends] + ([ends, whole] if checkpointing else [])


def test_ordinary_calls_see_every_token() -> None:
    model = RewardModel(tiny_backbone())
    model.score(pack(random_groups()))
    model.hf_model.set_attn_implementation("sdpa")
    ids = torch.arange(1, 9)[None]
    assert lengths_seen(model, lambda: model.hf_model(ids, use_cache=False)) == [8, 8]


def test_it_is_given_up_where_read_states_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """A feed-forward whose result does not come back to its places: the probe sees it and takes the model as it was."""
    monkeypatch.setattr(ShortLastLayer, "_scatter", lambda self, module, args, output: None)
    groups = random_groups()
    batch = pack(groups)
    backbone = tiny_backbone()
    alone = scores_alone(tiny_backbone(), groups, batch)
    model = RewardModel(backbone).eval()
    assert shortened_module(model) is None
    torch.testing.assert_close(model.score(batch), alone, rtol=1e-5, atol=1e-5)


def test_a_feed_forward_that_layers_share() -> None:
    """The first layer's call comes through the same module and must see every token, in the second batch as well."""
    backbone = tiny_backbone()
    backbone.model.layers[1].mlp = backbone.model.layers[0].mlp
    groups = random_groups()
    batch = pack(groups)
    alone = scores_alone(backbone, groups, batch)
    model = RewardModel(backbone).eval()
    for _ in range(2):
        torch.testing.assert_close(model.score(batch), alone, rtol=1e-5, atol=1e-5)


def test_families_without_such_a_module_are_left_as_they_are() -> None:
    opt = tiny_backbone("opt")
    assert not ShortLastLayer(opt)
    assert shortened_module(opt) is None


def test_what_is_not_computed_is_not_counted() -> None:
    """A Llama of 2 layers, hidden 32 and 48 between: 3 x 32 x 48 weights meet the ends of segments alone."""
    plain, short = tiny_backbone(), tiny_backbone()
    assert ShortLastLayer(short)
    moved = 6 * 3 * 32 * 48
    assert matrix_flops(short).per_read_token == moved
    assert matrix_flops(short).per_token == matrix_flops(plain).per_token - moved
    segments = pack(random_groups()).segments
    saved = moved * (segments.num_tokens - len(segments))
    assert matrix_flops(plain).of(segments) - matrix_flops(short).of(segments) == saved
