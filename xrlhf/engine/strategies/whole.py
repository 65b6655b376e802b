"""A part of a model with whole weights in the place of those that a strategy has split, while it draws answers.

What draws answers calls the language model by itself, once a token, and on one process more often than on another: it
can neither fetch weights from the other processes layer by layer nor wait for them. So all weights are fetched before
it begins, which is the only time at which processes meet, and the hooks that would fetch and split them again are
taken off meanwhile.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

__all__ = ["with_whole_weights"]

_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_OWNERS = ("torch.distributed.", "deepspeed.")


@contextlib.contextmanager
def with_whole_weights(part: nn.Module, whole: Callable[[nn.Parameter], Tensor]) -> Iterator[None]:
    """Put whole weights into a part of a model, and those that were there back afterwards.

    Args:
        part: The part; its weights are not to be changed meanwhile.
        whole: Gives the whole of a weight on this process's device, or the weight itself where it is not split. It is
            asked once for every weight, in the same order on all processes, before anything runs.
    """
    made: dict[int, nn.Parameter] = {}
    weights: dict[nn.Module, dict[str, nn.Parameter | None]] = {}
    for module in part.modules():
        weights[module] = {}
        for name, weight in module._parameters.items():
            if weight is not None and id(weight) not in made:
                found = whole(weight)
                # As before, also in whether it is trained: autocast keeps the copies that it makes of such weights.
                made[id(weight)] = weight if found is weight else nn.Parameter(found, weight.requires_grad)
            weights[module][name] = None if weight is None else made[id(weight)]
    before = {module: {name: vars(module)[name] for name in ("_parameters", *_HOOKS)} for module in weights}
    try:
        for module, own in weights.items():
            # The dict itself: DeepSpeed has put one in its place that fetches what is asked of it.
            vars(module)["_parameters"] = own
            for name in _HOOKS:
                vars(module)[name] = OrderedDict(
                    (number, hook) for number, hook in vars(module)[name].items() if not _fetches(hook)
                )
        yield
    finally:
        for module, held in before.items():
            vars(module).update(held)


def _fetches(hook: Any) -> bool:
    """Whether a hook is one of those by which a strategy fetches weights and gives them back."""
    return str(getattr(hook, "__module__", "")).startswith(_OWNERS)
