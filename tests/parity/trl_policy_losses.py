"""TRL's own loss code on given log-probabilities: run in an environment with TRL by test_policy_losses_equal_trl.py.

python trl_policy_losses.py JOB RESULT: both are files of torch.save. Nothing of TRL is changed; its methods are called
on an object that holds the few attributes they read, with a model that returns what the job says.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer


def identity(value: Any) -> Any:
    """What gathering over one process is."""
    return value


ACCELERATOR = SimpleNamespace(device=torch.device("cpu"), gather=identity, gather_for_metrics=identity)


class GivenOutputs:
    """A model whose outputs are known beforehand."""

    training = True

    def __init__(self, **outputs: Tensor | None) -> None:
        self.outputs = SimpleNamespace(**outputs)

    def __call__(self, *_: Any, **__: Any) -> SimpleNamespace:
        return self.outputs


def given_log_probs(log_probs: Tensor) -> GivenOutputs:
    """A model with these log-probabilities (B, S), and zeros in what only metrics read."""
    zeros = torch.zeros_like(log_probs)
    return GivenOutputs(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def tokens_of(num_tokens: Tensor, width: int) -> dict[str, Tensor]:
    """Ids and masks (B, 1 + width) of one prompt token and as many answer tokens as ``num_tokens`` (B,) says."""
    places = torch.arange(width + 1)
    completion_mask = ((places >= 1) & (places <= num_tokens.unsqueeze(1))).long()
    attention_mask = (places <= num_tokens.unsqueeze(1)).long()
    ids = torch.ones_like(attention_mask)
    return {"input_ids": ids, "attention_mask": attention_mask, "completion_mask": completion_mask}


def last_metrics(metrics: dict[str, list[float]]) -> dict[str, float]:
    return {name: values[-1] for name, values in metrics.items() if name.startswith(("rewards/", "logps/", "kl"))}


def dpo(job: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Loss, gradient and metrics of every pair by itself."""
    values, gradients, metrics = [], [], []
    for pair in range(len(job["num_tokens"])):
        log_probs = job["token_logps"][pair].clone().requires_grad_()
        trainer = SimpleNamespace(
            model=SimpleNamespace(training=True),
            accelerator=ACCELERATOR,
            aux_loss_enabled=False,
            ld_alpha=None,
            precompute_ref_logps=True,
            f_divergence_type="reverse_kl",
            loss_types=[options["loss_type"]],
            loss_weights=[1.0],
            beta=options["beta"],
            label_smoothing=options.get("label_smoothing", 0.0),
            use_weighting=False,
            _metrics={"train": defaultdict(list)},
            _total_train_tokens=0,
            _tp_size=1,
        )
        chosen, rejected = job["reference"][pair].unsqueeze(1)
        inputs = tokens_of(job["num_tokens"][pair], log_probs.shape[1])
        inputs |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        loss = DPOTrainer._compute_loss(trainer, given_log_probs(log_probs), inputs, False)
        loss.backward()
        values.append(loss.detach())
        gradients.append(log_probs.grad)
        metrics.append(last_metrics(trainer._metrics["train"]))
    return {"values": torch.stack(values), "gradients": torch.stack(gradients), "metrics": metrics}


def kto(job: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Loss, gradient and metrics of the chosen answers as one batch, every other one of them wanted."""
    log_probs = job["token_logps"][:, 0].clone().requires_grad_()
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=ACCELERATOR,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        calculate_KL=options["loss_type"] == "kto",
        loss_type=options["loss_type"],
        beta=options["beta"],
        desirable_weight=options["desirable_weight"],
        undesirable_weight=options["undesirable_weight"],
        _compute_kl_logps=lambda model, batch: options.get("kl_logps"),
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = tokens_of(job["num_tokens"][:, 0], log_probs.shape[1])
    inputs |= {"label": job["wanted"], "ref_logps": job["reference"][:, 0], "ref_KL_logps": options.get("kl_reference")}
    loss = KTOTrainer._compute_loss(trainer, given_log_probs(log_probs), inputs, False)
    loss.backward()
    return {
        "values": loss.detach(),
        "gradients": log_probs.grad,
        "metrics": last_metrics(trainer._metrics["train"]),
    }


def of_logits(trainer_class: type) -> Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]:
    """ORPO or CPO, from the logits on: of every pair by itself, and of all as one batch."""

    def run(job: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        def batch_loss(pairs: list[int]) -> tuple[Tensor, Tensor, dict[str, float]]:
            # TRL puts all chosen rows before all rejected ones.
            logits = torch.cat([job["logits"][pairs, 0], job["logits"][pairs, 1]]).clone().requires_grad_()
            batch = {}
            for place, side in enumerate(("chosen", "rejected")):
                ids = job["input_ids"][pairs, place]
                masks = tokens_of(job["num_tokens"][pairs, place], ids.shape[1] - 1)
                batch[f"{side}_input_ids"] = ids
                batch[f"{side}_attention_mask"] = masks["attention_mask"]
                batch[f"{side}_labels"] = ids.masked_fill(masks["completion_mask"] == 0, -100)
            trainer = SimpleNamespace(
                accelerator=ACCELERATOR,
                aux_loss_enabled=False,
                is_encoder_decoder=False,
                padding_value=0,
                pad_token_id=0,
                concatenated_inputs=trainer_class.concatenated_inputs,
                get_batch_logps=trainer_class.get_batch_logps,
                **{"label_smoothing": 0.0, "simpo_gamma": 0.0, "alpha": 0.0, **options},
            )
            for name in ("concatenated_forward", "cpo_loss", "odds_ratio_loss"):
                if hasattr(trainer_class, name):
                    setattr(trainer, name, MethodType(getattr(trainer_class, name), trainer))
            loss, metrics = trainer_class.get_batch_loss_metrics(trainer, GivenOutputs(logits=logits), batch)
            loss.backward()
            return loss.detach(), logits.grad, metrics

        alone = [batch_loss([pair]) for pair in range(len(job["num_tokens"]))]
        together = batch_loss(list(range(len(job["num_tokens"]))))
        return {
            "values": torch.stack([value for value, _, _ in alone]),
            "gradients": torch.stack([gradient for _, gradient, _ in alone]),
            "metrics": [metrics for _, _, metrics in alone],
            "together": together[0],
            "metrics together": together[2],
        }

    return run


METHODS = {"dpo": dpo, "kto": kto, "cpo": of_logits(CPOTrainer), "orpo": of_logits(ORPOTrainer)}


def main(job_file: str, result_file: str) -> None:
    """Run every case of the job."""
    job = torch.load(job_file, weights_only=True)
    results = {name: METHODS[case["method"]](job, case["options"]) for name, case in job["cases"].items()}
    torch.save(results, result_file)


if __name__ == "__main__":
    main(*sys.argv[1:])
