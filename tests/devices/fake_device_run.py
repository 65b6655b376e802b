"""Trains the project's models on the fake device; test_fake_device starts it and reads what it writes.

Argument: a folder. Writes ``found.pt`` into it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch.optim import AdamW

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))

from fake_device import FakeDevice, FakeDeviceTensor, set_up
from rl_toy import FixedRollouts, rl_run, steps, tiny_actor_critic
from toy import ToyDataset, answers, pairs, run_of, tiny_policy, tiny_reward_model, train

from xrlhf.data.packing import pack
from xrlhf.devices import CpuDevice, Device
from xrlhf.engine.strategies import SingleStrategy
from xrlhf.evaluation.batches import evaluate_batches
from xrlhf.losses.policy import DPOLoss
from xrlhf.losses.policy_gradient import PolicyGradientLoss
from xrlhf.models import PolicyModel, RewardModel
from xrlhf.rl import GAE

ADAMW = {"optimizer": {"type": AdamW, "lr": 1e-2, "weight_decay": 0.1}, "max_grad_norm": 1.0}


def trained(folder: Path, name: str, device: Device, *, padded: bool = False, lora: bool = False) -> dict[str, Any]:
    """Logs, weights and scores of four steps."""
    model = tiny_reward_model(0.0 if lora else None, static_shapes=padded)
    found = trained_model(model, pairs(), folder / name, device)
    with torch.no_grad():
        scores = model.eval().score(pack(pairs(6).groups).to(device.torch_device))
    return {**found, "scores": scores.cpu()}


def trained_policy(
    folder: Path, name: str, device: Device, *, padded: bool = False, on_host: bool = False
) -> dict[str, Any]:
    """The same of a policy against a copy of itself; in the place of scores its log-probabilities."""
    options = {"reference_device": "cpu"} if on_host else {}
    model = tiny_policy(DPOLoss(), static_shapes=padded, **options)
    found = trained_model(model, answers(), folder / name, device)
    with torch.no_grad():
        log_probs = model.eval().token_log_probs(pack(answers(6).groups).to(device.torch_device))
    return {**found, "scores": log_probs.cpu(), "reference_on_host": is_on_host(model)}


def trained_actor_critic(folder: Path, name: str, device: Device, *, on_host: bool = False) -> dict[str, Any]:
    """The same of PPO on two rollouts; in the place of scores what is known of tokens before they are learnt from."""
    options = {"reference_device": "cpu"} if on_host else {}
    model = tiny_actor_critic(PolicyGradientLoss(kl_coef=0.1), critic="shared", **options)
    settings = {"advantage": {"type": GAE}, "num_answers": 2, "minibatches": 2, "kl_coef": 0.1, "max_rollouts": 2}
    run = rl_run(
        model, folder / name, strategy=strategy_on(device, folder / name), rollouts=FixedRollouts(), **settings
    )
    logs = steps(run, 4)
    with torch.no_grad():
        batch = pack(list(run.loop._experience.groups)).to(device.torch_device)
        values = model.eval()(batch, mode="rollout")
    known = torch.cat([values[key].cpu() for key in sorted(values)])
    return {**found_of(model, logs), "scores": known, "reference_on_host": is_on_host(model)}


def is_on_host(model: PolicyModel) -> bool:
    """Whether the reference stayed on the CPU."""
    assert model.reference is not None
    return not any(isinstance(weight, FakeDeviceTensor) for weight in model.reference.parameters())


def strategy_on(device: Device, folder: Path) -> SingleStrategy:
    return SingleStrategy(
        device=device,
        work_dir=str(folder),
        env_kwargs={"launcher": "none", "randomness": {"seed": 0}},
        experiment_name=folder.name,
    )


def trained_model(
    model: RewardModel | PolicyModel, dataset: ToyDataset, folder: Path, device: Device
) -> dict[str, Any]:
    """Logs and weights of four steps."""
    strategy = strategy_on(device, folder)
    run = run_of(model, dataset, folder, max_steps=4, optim_wrapper=ADAMW, strategy=strategy)
    return found_of(model, train(run))


def found_of(model: RewardModel | PolicyModel, logs: list[dict[str, float]]) -> dict[str, Any]:
    """What every run is compared by."""
    return {
        "layout": model.layout,
        "logs": logs,
        "on_fake_device": all(isinstance(p, FakeDeviceTensor) for p in model.parameters()),
        "weights": {name: value.detach().cpu() for name, value in model.state_dict().items()},
    }


def message_of(call: Any) -> str:
    try:
        call()
    except RuntimeError as error:
        return str(error)
    return "no error"


class Forgetful(RewardModel):
    """Makes a tensor without saying where."""

    def outputs(self, batch: Any) -> torch.Tensor:
        outputs = super().outputs(batch)
        return outputs + torch.ones(outputs.shape)


def metrics_on(device: Device) -> dict[str, float]:
    """Of a validation set in memory."""
    import numpy as np

    from xrlhf.data.loader import EvalBatch

    groups = pairs(6).groups
    item = EvalBatch(pack(groups), np.zeros(len(groups), dtype=np.int64))
    model = tiny_reward_model().to(device.torch_device).eval()
    metrics = evaluate_batches(model, [item], device)  # type: ignore[arg-type]
    return metrics.compute(["toy"])


def main() -> None:
    folder = Path(sys.argv[1])
    library = set_up()
    fake = FakeDevice()
    fake.set_device(0)
    model = tiny_reward_model().to(fake.torch_device)
    batch = pack(pairs(2).groups)
    forgetful = tiny_reward_model()
    forgetful.__class__ = Forgetful
    found = {
        "fake": trained(folder, "fake", fake),
        "cpu": trained(folder, "cpu", CpuDevice()),
        "fake, padded": trained(folder, "fake_padded", FakeDevice(static_shapes=True), padded=True),
        "cpu, padded": trained(folder, "cpu_padded", CpuDevice(), padded=True),
        "fake, lora": trained(folder, "fake_lora", fake, lora=True),
        "cpu, lora": trained(folder, "cpu_lora", CpuDevice(), lora=True),
        "fake, policy": trained_policy(folder, "fake_policy", fake),
        "cpu, policy": trained_policy(folder, "cpu_policy", CpuDevice()),
        "fake, padded policy": trained_policy(
            folder, "fake_padded_policy", FakeDevice(static_shapes=True), padded=True
        ),
        "cpu, padded policy": trained_policy(folder, "cpu_padded_policy", CpuDevice(), padded=True),
        "fake, policy, reference on the host": trained_policy(folder, "fake_host", fake, on_host=True),
        "cpu, ppo": trained_actor_critic(folder, "cpu_ppo", CpuDevice()),
        "fake, ppo, reference on the host": trained_actor_critic(folder, "fake_ppo_host", fake, on_host=True),
        "metrics": [metrics_on(device) for device in (fake, CpuDevice())],
        "batch_left_behind": message_of(lambda: model.score(batch)),
        "tensor_left_behind": message_of(lambda: forgetful.to("fakedev:0").score(batch.to("fakedev:0"))),
        "sum_of_both": message_of(lambda: torch.ones(2, device="fakedev:0") + torch.ones(2)),
    }
    torch.save(found, folder / "found.pt")
    del library


if __name__ == "__main__":
    main()
