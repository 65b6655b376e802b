"""Validation: exact metrics over a whole set, whatever the number of processes."""

from __future__ import annotations

from typing import Any

from mmengine.runner import BaseLoop

from xrlhf.data.loader import EvalLoader
from xrlhf.evaluation.batches import SetMetrics, evaluate_batches
from xrlhf.evaluation.set_loss import SetLoss
from xrlhf.registry import LOOPS

__all__ = ["GroupValLoop", "LossValLoop"]


@LOOPS.register_module()
class GroupValLoop(BaseLoop):
    """Scores every group of the validation set once.

    Args:
        runner: The runner.
        dataloader: Gives this process's share of the set.
        evaluator: Unused; mmengine hands one to every validation loop.
    """

    def __init__(self, runner: Any, dataloader: EvalLoader, evaluator: Any = None) -> None:
        super().__init__(runner, dataloader)

    def run(self) -> dict[str, float]:
        """Metrics over the set: overall, and per source where there are several."""
        runner = self.runner
        strategy = runner.strategy
        runner.call_hook("before_val")
        runner.call_hook("before_val_epoch")
        model = strategy.module
        model.eval()
        metrics = evaluate_batches(model, self.dataloader, strategy.device, wrapped=strategy.model)
        merged = SetMetrics()
        for state in strategy.gather_objects(metrics.state()):
            merged.merge(state)
        results = merged.compute(self.dataloader.dataset.names)
        if len(self.dataloader.dataset.names) == 1:
            results = {name: value for name, value in results.items() if "/" not in name}
        runner.call_hook("after_val_epoch", metrics=results)
        runner.call_hook("after_val")
        return results


@LOOPS.register_module()
class LossValLoop(BaseLoop):
    """The loss and its metrics on every group of the validation set, as training has them in a step: for policies.

    Args:
        runner: The runner.
        dataloader: Gives this process's share of the set.
        evaluator: Unused; mmengine hands one to every validation loop.
    """

    def __init__(self, runner: Any, dataloader: EvalLoader, evaluator: Any = None) -> None:
        super().__init__(runner, dataloader)

    def run(self) -> dict[str, float]:
        """Means over the set: of the loss by its unit, of every metric by its count."""
        runner = self.runner
        strategy = runner.strategy
        runner.call_hook("before_val")
        runner.call_hook("before_val_epoch")
        strategy.module.eval()
        own = SetLoss()
        own.add(strategy.module, self.dataloader, strategy.device, strategy.model)
        results = SetLoss.of_all(strategy.gather_objects(own.sums)).compute()
        runner.call_hook("after_val_epoch", metrics=results)
        runner.call_hook("after_val")
        return results
