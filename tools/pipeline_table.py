"""Prints what the pipeline demonstration reached."""

from __future__ import annotations

import sys
from pathlib import Path

from xrlhf.engine.hooks.curves import read_curves

BEST = 6.0
"""Points of the best answer by the rule of the practice data."""


def main(directory: str) -> int:
    """Print the table; 1 if PPO did not make the answers better by the rule."""
    out = Path(directory)
    sft, reward, ppo = (read_curves(out / name) for name in ("sft", "reward", "ppo"))
    print()
    print(f"  fine-tuning   held-out loss {sft['val/loss'][-1][1]:.3f}")
    print(f"  reward model  held-out accuracy {reward['val/accuracy'][-1][1]:.3f}")
    print(f"  PPO           rewards of held-out answers, of at most {BEST:g} points by the rule")
    print()
    print("       step    reward model    rule")
    judged = dict(ppo["val/reward_practice"])
    for step, value in ppo["val/reward"]:
        print(f"  {step:9,}    {value:12.3f}    {judged[step]:4.2f}")
    print()
    print(f"  policy        {out / 'policy_hf'}   (xrlhf chat {out / 'policy_hf'})")
    print(f"  curves        {out / 'report.html'}")
    print()
    first, last = ppo["val/reward_practice"][0][1], ppo["val/reward_practice"][-1][1]
    if last <= first:
        print("failed: by the rule the answers are no better than before", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
