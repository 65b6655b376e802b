"""The losses of policies give what TRL's own code gives on the same log-probabilities, gradients and metrics included.

TRL runs in an environment of its own (trl_policy_losses.py); without one the tests are skipped. ORPO and CPO start from
logits, so that TRL's way to log-probabilities and its language-model term are compared too.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from environments import installed_python
from peer_env import trl_requirements
from torch import Tensor, nn
from torch.testing import assert_close

from xrlhf.losses.policy import (
    APODownLoss,
    APOZeroLoss,
    CPOLoss,
    DPOLoss,
    HingeDPOLoss,
    IPOLoss,
    KTOLoss,
    ORPOLoss,
    ResponseLogps,
    RobustDPOLoss,
    SimPOLoss,
)

SCRIPT = Path(__file__).with_name("trl_policy_losses.py")
NUM_PAIRS, WIDTH, VOCABULARY = 12, 7, 11

CASES: dict[str, tuple[nn.Module, str, dict[str, Any]]] = {
    "sigmoid": (DPOLoss(beta=0.3), "dpo", {"loss_type": "sigmoid", "beta": 0.3}),
    "sigmoid_norm": (DPOLoss(beta=2, per_token=True), "dpo", {"loss_type": "sigmoid_norm", "beta": 2.0}),
    "hinge": (HingeDPOLoss(beta=0.2), "dpo", {"loss_type": "hinge", "beta": 0.2}),
    "ipo": (IPOLoss(beta=0.4), "dpo", {"loss_type": "ipo", "beta": 0.4}),
    "robust": (
        RobustDPOLoss(beta=0.3, label_smoothing=0.2),
        "dpo",
        {"loss_type": "robust", "beta": 0.3, "label_smoothing": 0.2},
    ),
    "apo_zero": (APOZeroLoss(beta=0.3), "dpo", {"loss_type": "apo_zero", "beta": 0.3}),
    "apo_down": (APODownLoss(beta=0.3), "dpo", {"loss_type": "apo_down", "beta": 0.3}),
    # With one pair in a batch there is nothing to sort, so this is smoothing as such.
    "smoothed": (
        DPOLoss(beta=0.3, label_smoothing=0.1),
        "dpo",
        {"loss_type": "aot", "beta": 0.3, "label_smoothing": 0.1},
    ),
    "kto": (
        KTOLoss(beta=0.3, desirable_weight=0.7, undesirable_weight=1.3),
        "kto",
        {"loss_type": "kto", "beta": 0.3, "desirable_weight": 0.7, "undesirable_weight": 1.3},
    ),
    "apo_zero_unpaired": (
        KTOLoss(beta=0.3, desirable_weight=0.7, undesirable_weight=1.3, estimate_kl=False),
        "kto",
        {"loss_type": "apo_zero_unpaired", "beta": 0.3, "desirable_weight": 0.7, "undesirable_weight": 1.3},
    ),
    "cpo": (
        CPOLoss(beta=0.3, label_smoothing=0.1, nll_weight=0.8),
        "cpo",
        {"loss_type": "sigmoid", "beta": 0.3, "label_smoothing": 0.1, "cpo_alpha": 0.8},
    ),
    "simpo": (
        SimPOLoss(beta=2, gamma=0.6, label_smoothing=0.1),
        "cpo",
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.6, "label_smoothing": 0.1, "cpo_alpha": 0.0},
    ),
    "cpo-simpo": (
        SimPOLoss(beta=2, gamma=0.6, nll_weight=1.5),
        "cpo",
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.6, "cpo_alpha": 1.5},
    ),
    "orpo": (ORPOLoss(beta=0.4), "orpo", {"beta": 0.4}),
}
OF_LOGPS = [name for name, (_, method, _) in CASES.items() if method == "dpo"]
OF_LOGITS = [name for name, (_, method, _) in CASES.items() if method in ("cpo", "orpo")]
DTYPES = [pytest.param(torch.float64, id="float64"), pytest.param(torch.float32, id="float32")]


def tolerance(name: str, dtype: torch.dtype) -> dict[str, float]:
    """TRL computes the odds ratio in float32, whatever comes in."""
    exact = dtype == torch.float64 and name != "orpo"
    return {"rtol": 1e-6, "atol": 1e-6} if exact else {"rtol": 1e-5, "atol": 1e-5}


def make_job(dtype: torch.dtype) -> dict[str, Any]:
    """Random answers of 1 to 7 tokens, two to a prompt of one token."""
    generator = torch.Generator().manual_seed(0)
    num_tokens = torch.randint(1, WIDTH + 1, (NUM_PAIRS, 2), generator=generator)
    exists = torch.arange(WIDTH) < num_tokens.unsqueeze(2)
    token_logps = -3 * torch.rand(NUM_PAIRS, 2, WIDTH, generator=generator, dtype=torch.float64)
    reference = -3 * torch.rand(NUM_PAIRS, 2, WIDTH, generator=generator, dtype=torch.float64)
    kl_logps, kl_reference = -5 * torch.rand(2, NUM_PAIRS, generator=generator, dtype=torch.float64)
    # The estimate is to be above 0, or it is not seen.
    kl_logps = kl_logps + 1.5
    cases: dict[str, Any] = {name: {"method": method, "options": dict(o)} for name, (_, method, o) in CASES.items()}
    cases["kto"]["options"] |= {"kl_logps": kl_logps.to(dtype), "kl_reference": kl_reference.to(dtype)}
    return {
        "cases": cases,
        "num_tokens": num_tokens,
        "token_logps": token_logps.masked_fill(~exists, 0.0).to(dtype),
        "reference": reference.masked_fill(~exists, 0.0).sum(dim=2).to(dtype),
        "wanted": torch.arange(NUM_PAIRS) % 2 == 0,
        "logits": 2 * torch.randn(NUM_PAIRS, 2, WIDTH + 1, VOCABULARY, generator=generator, dtype=dtype),
        "input_ids": torch.randint(1, VOCABULARY, (NUM_PAIRS, 2, WIDTH + 1), generator=generator),
    }


Run = tuple[torch.dtype, dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module", params=DTYPES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The job in one precision, and what TRL makes of it."""
    python = installed_python("trl", trl_requirements())
    folder = tmp_path_factory.mktemp("trl")
    job = make_job(request.param)
    torch.save(job, folder / "job.pt")
    finished = subprocess.run(
        [str(python), str(SCRIPT), str(folder / "job.pt"), str(folder / "result.pt")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return request.param, job, torch.load(folder / "result.pt", weights_only=True)


def pairs_of(job: dict[str, Any]) -> tuple[ResponseLogps, ResponseLogps, Tensor, Tensor]:
    """The job's pairs as the losses take them."""
    logps = job["token_logps"].sum(dim=2).requires_grad_()
    mask = torch.ones(NUM_PAIRS, 2, dtype=torch.bool)
    ratings = torch.full((NUM_PAIRS, 2), torch.nan, dtype=logps.dtype)
    num_tokens = job["num_tokens"]
    return ResponseLogps(logps, num_tokens), ResponseLogps(job["reference"], num_tokens), mask, ratings


def logps_of_logits(job: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The job's logits, a leaf, and the log-probabilities of its answers that follow from them."""
    logits = job["logits"].clone().requires_grad_()
    tokens = logits[:, :, :-1].log_softmax(dim=3).gather(3, job["input_ids"][:, :, 1:].unsqueeze(3)).squeeze(3)
    exists = torch.arange(WIDTH) < job["num_tokens"].unsqueeze(2)
    return logits, tokens.masked_fill(~exists, 0.0).sum(dim=2)


METRICS = {
    "rewards/chosen": "chosen_reward_mean",
    "rewards/rejected": "rejected_reward_mean",
    "rewards/margins": "reward_margin",
    "rewards/accuracies": "reward_acc",
    "logps/chosen": "chosen_logp_mean",
    "logps/rejected": "rejected_logp_mean",
}


def compare_metrics(found: dict[str, Any], theirs: list[dict[str, float]], names: dict[str, str]) -> None:
    for their_name, name in names.items():
        expected = torch.tensor([metrics[their_name] for metrics in theirs], dtype=torch.float64)
        assert_close(
            found[name].values.double(), expected, rtol=1e-5, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("name", OF_LOGPS)
def test_pairs_with_a_reference(name: str, run: Run) -> None:
    dtype, job, results = run
    loss: Any = CASES[name][0]
    policy, reference, mask, ratings = pairs_of(job)
    values = loss(policy, reference, mask, ratings)
    assert values.dtype == dtype
    assert_close(values.detach(), results[name]["values"], **tolerance(name, dtype))
    values.sum().backward()
    assert policy.logps.grad is not None
    # Every token of an answer, padding included, has the gradient of the sum.
    assert_close(
        policy.logps.grad.unsqueeze(2).expand(-1, -1, WIDTH), results[name]["gradients"], **tolerance(name, dtype)
    )
    # TRL's rewards are sums for every loss; here they are what the loss compares.
    names = (
        dict(METRICS) if not getattr(loss, "per_token", False) else {k: v for k, v in METRICS.items() if "logps" in k}
    )
    compare_metrics(loss.statistics(policy, reference, mask, ratings), results[name]["metrics"], names)


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
def test_single_answers(name: str, run: Run) -> None:
    dtype, job, results = run
    loss: Any = CASES[name][0]
    options = job["cases"][name]["options"]
    logps = job["token_logps"].sum(dim=2)[:, :1].clone().requires_grad_()
    num_tokens = job["num_tokens"][:, :1]
    kl = (options["kl_logps"] - options["kl_reference"]).mean() if name == "kto" else None
    assert kl is None or kl > 0.5
    policy, reference = ResponseLogps(logps, num_tokens), ResponseLogps(job["reference"][:, :1], num_tokens)
    mask, ratings = torch.ones(NUM_PAIRS, 1, dtype=torch.bool), job["wanted"].to(dtype).unsqueeze(1)
    value = loss(policy, reference, mask, ratings, kl=kl).mean()
    assert_close(value.detach(), results[name]["values"], **tolerance(name, dtype))
    value.backward()
    assert logps.grad is not None
    assert_close(logps.grad.expand(-1, WIDTH), results[name]["gradients"], **tolerance(name, dtype))
    found = loss.statistics(policy, reference, mask, ratings)
    for their_name in ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"):
        values, counted = found[METRICS[their_name]]
        assert values[counted].mean().item() == pytest.approx(results[name]["metrics"][their_name], rel=1e-5)


@pytest.mark.parametrize("name", OF_LOGITS)
def test_pairs_without_a_reference(name: str, run: Run) -> None:
    dtype, job, results = run
    loss: Any = CASES[name][0]
    logits, logps = logps_of_logits(job)
    policy = ResponseLogps(logps, job["num_tokens"])
    mask = torch.ones(NUM_PAIRS, 2, dtype=torch.bool)
    ratings = torch.full((NUM_PAIRS, 2), torch.nan, dtype=dtype)
    values = loss(policy, None, mask, ratings)
    assert_close(values.detach(), results[name]["values"], **tolerance(name, dtype), check_dtype=False)
    values.sum().backward()
    assert_close(logits.grad, results[name]["gradients"], **tolerance(name, dtype), check_dtype=False)
    found = loss.statistics(policy, None, mask, ratings)
    compare_metrics(
        found,
        results[name]["metrics"],
        {k: v for k, v in METRICS.items() if "rewards" in k}
        | ({"nll_loss": "chosen_nll_mean"} if loss.nll_weight else {})
        | ({"log_odds_chosen": "log_odds_ratio"} if name == "orpo" else {}),
    )


@pytest.mark.parametrize("name", ["cpo", "cpo-simpo", "orpo"])
def test_the_language_model_term_of_a_batch_is_weighted_by_tokens_there_and_by_groups_here(name: str, run: Run) -> None:
    """What the docstrings say of TRL: the two means differ, and by nothing but their weights."""
    dtype, job, results = run
    loss: Any = CASES[name][0]
    _, logps = logps_of_logits(job)
    chosen, num_tokens = logps[:, 0].detach(), job["num_tokens"][:, 0]
    by_tokens, by_groups = -chosen.sum() / num_tokens.sum(), -(chosen / num_tokens).mean()
    assert abs(by_tokens - by_groups) > 1e-2
    assert results[name]["metrics together"]["nll_loss"] == pytest.approx(by_tokens.item(), rel=1e-5)
    mask, ratings = torch.ones(NUM_PAIRS, 2, dtype=torch.bool), torch.full((NUM_PAIRS, 2), torch.nan, dtype=dtype)
    ours = loss(ResponseLogps(logps, job["num_tokens"]), None, mask, ratings).mean().detach()
    expected = ours + loss.nll_weight * (by_tokens - by_groups)
    assert results[name]["together"].item() == pytest.approx(expected.item(), rel=1e-5)
