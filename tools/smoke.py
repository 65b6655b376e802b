"""Trains tiny models on a device and checks what it can: to run on hardware, and to post what it prints.

Usage: python tools/smoke.py [--device NAME] [--folder DIRECTORY]

Every row of the table is a check: ``ok``, ``FAILED``, or ``not here`` with the reason. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from xrlhf.data.packing import pack
from xrlhf.devices import Device, find_device
from xrlhf.engine.environment import environment_report
from xrlhf.errors import UserError, error_line
from xrlhf.losses import RankingLoss
from xrlhf.models import RewardModel, backbone_from_config
from xrlhf.ops.attention import BACKENDS
from xrlhf.structures import PackedBatch, TokenizedGroup, as_ids

TOOLS = Path(__file__).resolve().parent
RECIPE = "tiny_reward_cpu"
STEPS = 8
"""Steps of every run; a checkpoint is taken in the middle."""
SHORT_RUN = [
    "groups_per_step=16",
    f"train_cfg.max_epochs={STEPS * 16 / 4000}",
    f"train_cfg.val_interval={STEPS}",
    f"default_hooks.checkpoint.interval={STEPS // 2}",
    "default_hooks.checkpoint.max_keep=none",
    "default_hooks.logger.interval=1",
    "default_hooks.throughput=none",
]
EXACT, ROUNDED = 1e-4, 0.05
"""Largest relative difference of scores in float32, and in 16-bit types."""
SHAPES = ((7, (4, 6)), (3, (1, 5, 2)), (12, (3, 3, 8, 1)), (1, (4, 4)))


class NotHere(Exception):
    """This device, or this environment, does not have what a check needs; the message says what."""


@dataclass(frozen=True)
class Check:
    """A row of the table: its name, and what returns the detail to show, or raises."""

    name: str
    run: Callable[[], str]


def main(arguments: list[str] | None = None) -> int:
    """Run all checks on one device; 1 if one of them failed, 2 where the device cannot be used."""
    parser = argparse.ArgumentParser(description="Check a device with tiny models, and print what to post.")
    parser.add_argument("--device", help="cuda, xpu, hpu, ipex or cpu; the first that is there if not given")
    parser.add_argument("--folder", type=Path, help="where runs go, to look at them afterwards; a temporary one if not")
    given = parser.parse_args(arguments)
    try:
        device = find_device(given.device)
        device.set_device(0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(environment_report()))
    print(f"\nsmoke test on {device.describe()}\n", flush=True)
    if given.folder is not None:
        given.folder.mkdir(parents=True, exist_ok=True)
        return run_checks(checks(device, given.folder))
    with tempfile.TemporaryDirectory() as folder:
        return run_checks(checks(device, Path(folder)))


def checks(device: Device, folder: Path) -> Iterator[Check]:
    """All checks, in the order in which they can run: later ones use what earlier ones wrote."""
    if device.static_shapes:
        yield Check("padded rows = alone", partial(padded_equals_alone, device))
    else:
        for name in BACKENDS:
            yield Check(f"packed = alone, {name}", partial(packed_equals_alone, device, name))
    commands = Commands(device, folder)
    for precision in ("float32", "bfloat16", "float16"):
        yield Check(f"train in {precision}", partial(commands.train, precision))
    yield Check("resume = never stopped", commands.resume)
    yield Check("export and score = transformers", commands.export_and_score)


def run_checks(all_checks: Iterator[Check]) -> int:
    """Print the table row by row; 1 if a check failed."""
    failed = 0
    print(f"{'check':<34}{'result':<10}{'seconds':>8}  detail")
    for check in all_checks:
        began = time.perf_counter()
        try:
            detail = check.run()
            result = "ok"
        except NotHere as reason:
            result, detail = "not here", str(reason)
        except Exception as error:
            # Whatever goes wrong on a device that nobody here has seen is what this script is for.
            result, detail = "FAILED", f"{type(error).__name__}: {error_line(error, 500)}"
            failed += 1
        print(f"{check.name:<34}{result:<10}{time.perf_counter() - began:>8.1f}  {detail}", flush=True)
    print(f"\n{failed} failed" if failed else "\nnothing failed")
    return int(failed > 0)


# ---------------------------------------------------------------- scores and gradients


def tiny_backbone() -> PreTrainedModel:
    """A Llama of two layers and 4 heads of 16, with weights large enough for attention to show in the scores."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 128}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return backbone_from_config("llama", head_init="normal", **sizes, **heads, pad_token_id=0, initializer_range=0.2)


def groups() -> list[TokenizedGroup]:
    generator = np.random.default_rng(0)
    return [
        TokenizedGroup(
            as_ids(generator.integers(5, 320, prompt)), tuple(as_ids(generator.integers(5, 320, n)) for n in sizes)
        )
        for prompt, sizes in SHAPES
    ]


def packed_equals_alone(device: Device, name: str) -> str:
    """One attention backend, in float32 where it computes in that, else in a 16-bit type."""
    try:
        return compare(device, "float32", EXACT, layout="packed", attention=name)
    except UserError as refusal:
        if "computes in float16 or bfloat16" not in str(refusal):
            raise NotHere(error_line(refusal)) from refusal
    precision = "bfloat16" if _computes_in(device, torch.bfloat16) else "float16"
    return compare(device, precision, ROUNDED, layout="packed", attention=name)


def padded_equals_alone(device: Device) -> str:
    """Rows of the short list of shapes."""
    return compare(device, "float32", EXACT, layout="padded", static_shapes=True)


def _computes_in(device: Device, dtype: torch.dtype) -> bool:
    try:
        device.check_precision(dtype)
    except UserError:
        return False
    return True


def compare(device: Device, precision: str, tolerance: float, **options: str | bool) -> str:
    """Scores and gradients of groups beside those of each conversation by itself, through plain transformers."""
    backbone = tiny_backbone()
    plain: Any = copy.deepcopy(backbone).eval()
    plain.to(device.torch_device)
    model = RewardModel(backbone, loss=RankingLoss(), precision=precision, **options)  # type: ignore[arg-type]
    model = model.to(device.torch_device).train()
    batch = pack(groups()).to(device.torch_device)
    scores = model.score(batch)
    _loss(scores, batch).backward()
    device.mark_step()
    with torch.autocast(device.torch_device.type, dtype=model.precision, enabled=precision != "float32"):
        alone = torch.zeros_like(scores)
        for g, group in enumerate(groups()):
            for k, response in enumerate(group.response_ids):
                ids = torch.from_numpy(np.concatenate([group.prompt_ids, response]).astype(np.int64))
                row = ids[None].to(device.torch_device)
                alone[g, k] = plain(row, use_cache=False).logits[0, 0].float()
    _loss(alone, batch).backward()
    device.mark_step()
    scores, alone = scores.detach(), alone.detach()
    wrong = float((scores - alone).abs().max() / alone.abs().max())
    found, wanted = _gradient(model.hf_model), _gradient(plain)
    wrong_gradient = float((found - wanted).norm() / wanted.norm())
    detail = f"{precision}, scores differ by {wrong:.1e}, gradients by {wrong_gradient:.1e}"
    # Gradients add up the rounding of everything behind them.
    if not (wrong <= tolerance and wrong_gradient <= 5 * tolerance):
        raise ValueError(f"{detail}, and {tolerance:g} and {5 * tolerance:g} are allowed")
    return detail


def _loss(scores: Tensor, batch: PackedBatch) -> Tensor:
    return RankingLoss()(scores, batch.response_mask, batch.ratings).sum()


def _gradient(model: PreTrainedModel) -> Tensor:
    return torch.cat([p.grad.float().cpu().flatten() for p in model.parameters() if p.grad is not None])


# ---------------------------------------------------------------- through the command line


class Commands:
    """Short runs of the shipped recipe, each in a process of its own.

    Args:
        device: The device.
        folder: Where they go.
    """

    def __init__(self, device: Device, folder: Path) -> None:
        self.device = device
        self.folder = folder
        self.environment = {**os.environ, "XRLHF_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}

    def _run(self, *command: str | Path) -> str:
        """What a command printed; its last lines as an error where it failed."""
        result = subprocess.run(
            [sys.executable, *map(str, command)], env=self.environment, capture_output=True, text=True, check=False
        )
        if result.returncode:
            lines = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
            raise RuntimeError(f"exit status {result.returncode}: {' | '.join(lines[-3:])}")
        return result.stdout

    def _xrlhf(self, *arguments: str | Path) -> str:
        return self._run("-m", "xrlhf.cli.main", *arguments)

    def train(self, precision: str) -> str:
        """Eight steps, in which the loss has to fall below its beginning."""
        try:
            self.device.check_precision(getattr(torch, precision))
        except UserError as refusal:
            raise NotHere(error_line(refusal)) from refusal
        work_dir = self.folder / precision
        options = [*SHORT_RUN, f"model.precision={precision}"]
        self._xrlhf("train", RECIPE, "--device", self.device.name, "--work-dir", work_dir, "--cfg-options", *options)
        steps = _logged(work_dir)
        losses = [step["loss"] for step in steps]
        speed = sorted(step["tokens_per_second"] for step in steps)[len(steps) // 2]
        skipped = f", {steps[-1]['num_skipped']:.0f} steps skipped" if "num_skipped" in steps[-1] else ""
        detail = f"loss {losses[0]:.3f} to {losses[-1]:.3f}, {speed:,.0f} tokens/s{skipped}"
        if len(losses) != STEPS or not min(losses) < losses[0]:
            raise ValueError(f"{detail} after {len(losses)} of {STEPS} steps: the loss never fell")
        return detail

    def resume(self) -> str:
        """The second half again, from the checkpoint in the middle: the weights at the end have to be the same."""
        before, again = self.folder / "float32", self.folder / "resumed"
        middle = before / f"iter_{STEPS // 2}.pth"
        options = [*SHORT_RUN, "model.precision=float32"]
        self._xrlhf(
            *("train", RECIPE, "--device", self.device.name, "--work-dir", again, "--resume", middle),
            *("--cfg-options", *options),
        )
        weights = [
            torch.load(run / f"iter_{STEPS}.pth", map_location="cpu", weights_only=True)["state_dict"]
            for run in (before, again)
        ]
        wrong = max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0])
        if wrong == 0:
            return "every weight is the same"
        detail = f"weights differ by up to {wrong:.1e}"
        if wrong > EXACT:
            raise ValueError(detail)
        return f"{detail}, as where kernels add up in any order"

    def export_and_score(self) -> str:
        """The scores of a directory on the device, and those of plain transformers on the CPU."""
        checkpoint, out = self.folder / "float32" / f"iter_{STEPS}.pth", self.folder / "reward_hf"
        self._xrlhf("convert", "pth_to_hf", RECIPE, checkpoint, out)
        conversations = json.loads((TOOLS / "example_conversations.json").read_text(encoding="utf-8"))
        rows, scored = self.folder / "rows.jsonl", self.folder / "scored.jsonl"
        rows.write_text("".join(json.dumps({"messages": item}) + "\n" for item in conversations), encoding="utf-8")
        self._xrlhf("score", out, "--data", rows, "--out", scored, "--device", self.device.name)
        self._run(TOOLS / "score_with_transformers.py", out, self.folder / "scores.json")
        here = [json.loads(line)["score"] for line in scored.read_text(encoding="utf-8").splitlines()]
        plain = json.loads((self.folder / "scores.json").read_text(encoding="utf-8"))
        wrong = max(abs(one - other) for one, other in zip(here, plain, strict=True))
        detail = f"{len(here)} scores differ by up to {wrong:.1e}"
        if not wrong <= EXACT * max(1.0, *map(abs, plain)):
            raise ValueError(detail)
        return detail


def _logged(work_dir: Path) -> list[dict[str, float]]:
    """The values of every training step of a run."""
    (file,) = work_dir.glob("*/vis_data/scalars.json")
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "tokens_per_second" in line]


if __name__ == "__main__":
    sys.exit(main())
