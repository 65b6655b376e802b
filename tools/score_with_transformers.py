"""Scores two conversations with a reward model directory through plain transformers: nothing of xrlhf is imported."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

CONVERSATIONS = Path(__file__).with_name("example_conversations.json")


def main(directory: str, out: str) -> None:
    """Score the example conversations and write the scores as a JSON list."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    scores = []
    for conversation in json.loads(CONVERSATIONS.read_text(encoding="utf-8")):
        inputs: Any = tokenizer.apply_chat_template(conversation, return_tensors="pt", return_dict=True)
        with torch.inference_mode():
            scores.append(model(**inputs).logits[0, 0].item())
    Path(out).write_text(json.dumps(scores) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
