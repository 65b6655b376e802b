"""One model of a report: what it is, and its scores on each benchmark."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xrlhf.data.sources.fingerprint import combine, file_digest
from xrlhf.evaluation.benchmark_scores import BenchmarkScores
from xrlhf.evaluation.scorer import Scorer

__all__ = ["ModelRun", "describe_model"]

_WEIGHTS = ("*.safetensors", "*.bin")


@dataclass
class ModelRun:
    """One model.

    Args:
        name: Unique in the report.
        about: What :func:`describe_model` gives.
        scores: By the name of the benchmark.
    """

    name: str
    about: dict[str, Any]
    scores: dict[str, BenchmarkScores] = field(default_factory=dict)


def describe_model(path: str, scorer: Scorer, **settings: Any) -> dict[str, Any]:
    """What has to be known to get the same scores again.

    Args:
        path: The directory or hub name it was loaded from.
        scorer: The loaded model.
        settings: Options of the command that change scores.
    """
    tokenizer = scorer.encoder.tokenizer
    template = tokenizer.chat_template
    folder = Path(path).expanduser()
    files = sorted(file for pattern in _WEIGHTS for file in folder.glob(pattern)) if folder.is_dir() else []
    return {
        "path": path,
        "architecture": type(scorer.model.hf_model).__name__,
        "num_parameters": sum(parameter.numel() for parameter in scorer.model.parameters()),
        "weights_digest": combine(file_digest(file) for file in files) if files else None,
        "tokenizer": type(tokenizer).__name__,
        "chat_template_digest": combine([str(template)]) if template is not None else None,
        "max_length": scorer.encoder.max_length,
        "truncation": scorer.encoder.truncation,
        "token_budget": scorer.token_budget,
        "device": str(scorer.device.torch_device),
        **settings,
    }
