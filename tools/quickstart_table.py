"""Prints what the quick start reached."""

from __future__ import annotations

import json
import sys
from pathlib import Path

LEAST_ACCURACY = 0.90


def main(directory: str) -> int:
    """Print the table; 1 if the accuracy is below what the quick start promises."""
    out = Path(directory)
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    conversations = json.loads(Path(__file__).with_name("example_conversations.json").read_text(encoding="utf-8"))
    print()
    print(f"  held-out accuracy   {metrics['accuracy']:.3f}", end="")
    print(f"   (95 %: {metrics['accuracy_low']:.3f} to {metrics['accuracy_high']:.3f}, ", end="")
    print(f"{metrics['num_groups']:.0f} groups)")
    print(f"  mean margin         {metrics['margin']:.2f}")
    print()
    print(f"  {conversations[0][-2]['role']}: {conversations[0][-2]['content']}")
    for conversation, score in zip(conversations, scores, strict=True):
        print(f"  {score:+8.3f}  {conversation[-1]['content']}")
    print()
    print(f"  reward model        {out / 'reward_model'}")
    print(f"  training curves     {out / 'run' / 'curves.png'}")
    print(f"  full log            {out / 'quickstart.log'}")
    print()
    if metrics["accuracy"] < LEAST_ACCURACY:
        print(f"failed: the held-out accuracy is below {LEAST_ACCURACY}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
