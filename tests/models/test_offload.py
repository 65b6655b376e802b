"""Activations in the memory of the host: the same gradients, and nothing moved that need not be."""

from __future__ import annotations

import pytest
import torch
from tiny_models import compare_gradients, gradients_of, random_groups, tiny_backbone
from torch import Tensor, nn

from xrlhf.data.packing import pack
from xrlhf.errors import ModelError
from xrlhf.losses import RankingLoss
from xrlhf.models import RewardModel
from xrlhf.models.offload import HostActivations


class Recording(HostActivations):
    """Takes the CPU for a device, and counts."""

    to_host_shapes: list[tuple[int, ...]]
    fetched = 0

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__(weights, least_bytes=1)

    def leaves_device(self, tensor: Tensor) -> bool:
        return True

    def to_host(self, tensor: Tensor) -> Tensor:
        type(self).to_host_shapes.append(tuple(tensor.shape))
        return super().to_host(tensor)

    def to_device(self, host: Tensor, device: torch.device) -> Tensor:
        type(self).fetched += 1
        return super().to_device(host, device)


@pytest.fixture
def recording() -> type[Recording]:
    Recording.to_host_shapes, Recording.fetched = [], 0
    return Recording


def test_weights_stay_and_the_rest_comes_back(recording: type[Recording]) -> None:
    layer = nn.Linear(3, 4)
    rows = torch.randn(2, 3, requires_grad=True)
    plain = torch.autograd.grad(layer(rows).square().sum(), [rows, *layer.parameters()])
    with recording(list(layer.parameters())).hooks():
        loss = layer(rows).square().sum()
    # The input of the layer and that of the square; the weight is saved too, and is not moved.
    assert sorted(recording.to_host_shapes) == [(2, 3), (2, 4)]
    moved = torch.autograd.grad(loss, [rows, *layer.parameters()])
    assert recording.fetched == 2
    for one, other in zip(plain, moved, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_cpu_and_small_tensors_keep_what_they_have() -> None:
    rows = torch.randn(100_000, requires_grad=True)
    seen = HostActivations([])
    assert not seen.leaves_device(rows)
    with seen.hooks():
        rows.exp().sum().backward()
    assert rows.grad is not None

    class Small(Recording):
        def __init__(self) -> None:
            HostActivations.__init__(self, [], least_bytes=1000)

    Small.to_host_shapes = []
    with Small().hooks():
        torch.randn(100, requires_grad=True).exp()
        torch.randn(300, requires_grad=True).exp()
    assert Small.to_host_shapes == [(300,)]


def test_a_reward_model_moves_the_inputs_of_its_layers(recording: type[Recording]) -> None:
    """Under checkpointing the input of each of two layers, and what the last norm keeps; gradients are equal."""
    groups = random_groups()
    batch = pack(groups)
    gradients = []
    for offload in (False, True):
        model = RewardModel(
            tiny_backbone(), loss=RankingLoss(), gradient_checkpointing=True, activation_offload=offload
        ).train()
        model.host_activations = recording
        model(batch).loss.backward()
        gradients.append(gradients_of(model))
    compare_gradients(gradients[1], gradients[0])
    states = [shape for shape in recording.to_host_shapes if shape == (1, batch.num_tokens, 32)]
    assert len(states) >= 2
    assert recording.fetched >= 2


def test_it_needs_checkpointing() -> None:
    with pytest.raises(ModelError, match="set gradient_checkpointing=True beside it"):
        RewardModel(tiny_backbone(), activation_offload=True)
