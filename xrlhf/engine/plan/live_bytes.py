"""Counting the bytes of tensors while a program makes and drops them."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["LiveBytes", "Peak"]


@dataclass(frozen=True)
class Peak:
    """The most bytes that were alive at once.

    Args:
        total: Bytes of all tensors.
        gradients: Bytes among them of gradients that were whole.
        phase: What was going on.
    """

    total: int = 0
    gradients: int = 0
    phase: str = ""


class LiveBytes(TorchDispatchMode):
    """Counts the tensors that operations inside it make, each memory once however many tensors look at it.

    Works on shapes alone and on real tensors, and sees what autograd keeps as well as what Python holds. What a single
    operation takes for itself and gives back before it returns is not seen.

    Args:
        known: Tensors that are there already and do not count.

    Attributes:
        live: Bytes alive now.
        peak: The most so far.
        peak_with_gradients: The most there would have been if the gradients that were dropped had stayed.
        phase: What is going on, for :class:`Peak`; to be set from outside.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = 0
        self.peak = Peak()
        self.peak_with_gradients = Peak()
        self.phase = ""
        self._dropped = 0
        self._is_paused = False
        self._seen: dict[int, weakref.ref[Any]] = {}
        with self.paused():
            for tensor in known:
                self._note(tensor)

    def reset_peak(self) -> None:
        """Begin anew to look for the peak, with what is alive now."""
        self._dropped = 0
        self.peak = self.peak_with_gradients = Peak(self.live, 0, self.phase)

    def drop_gradient(self, weight: Tensor) -> None:
        """Take a weight's gradient away, and remember that it was there."""
        if weight.grad is not None:
            self._dropped += weight.grad.untyped_storage().nbytes()
            weight.grad = None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is made inside does not count."""
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        size = 0 if self._is_paused else storage.nbytes()
        self._seen[key] = weakref.ref(storage, lambda _: self._forget(key, size))
        self.live += size
        if self.live > self.peak.total:
            self.peak = Peak(self.live, 0, self.phase)
        if self.live + self._dropped > self.peak_with_gradients.total:
            self.peak_with_gradients = Peak(self.live + self._dropped, self._dropped, self.phase)

    def _forget(self, key: int, size: int) -> None:
        self._seen.pop(key, None)
        self.live -= size
