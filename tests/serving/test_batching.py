from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Sequence

import pytest

from xrlhf.serving.batching import Batcher
from xrlhf.serving.refusal import Refusal, RefusalKind
from xrlhf.structures import TokenizedGroup, as_ids

POISON, BROKEN = 666, 667


class Model:
    """Gives every response the sum of its conversation's ids; counts passes, and waits while it is told to.

    The id 666 anywhere in a batch makes the whole batch NaN, as careless arithmetic would; 667 makes it fail.
    """

    def __init__(self) -> None:
        self.batches: list[list[TokenizedGroup]] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.began = threading.Event()

    def __call__(self, groups: Sequence[TokenizedGroup]) -> list[list[float]]:
        self.batches.append(list(groups))
        self.began.set()
        assert self.go_on.wait(20)
        ids = {token for group in groups for part in (group.prompt_ids, *group.response_ids) for token in part.tolist()}
        if BROKEN in ids:
            raise RuntimeError("out of memory")
        return [
            [math.nan if POISON in ids else float(group.prompt_ids.sum() + part.sum()) for part in group.response_ids]
            for group in groups
        ]


def group(*ids: int, answers: Sequence[Sequence[int]] = ((1,),)) -> TokenizedGroup:
    return TokenizedGroup(as_ids(ids), tuple(as_ids(answer) for answer in answers))


def batcher_of(model: Model, **options: int) -> Batcher:
    batcher = Batcher(model, **{"token_budget": 100, **options})
    batcher.start()
    return batcher


async def started(model: Model) -> None:
    while not model.began.is_set():
        await asyncio.sleep(0.001)


def test_scores_come_in_the_order_of_the_request() -> None:
    model = Model()
    batcher = batcher_of(model)
    groups = [group(1, 2, answers=[[3], [4, 5]]), group(10), group(7, 7, 7, answers=[[1], [2], [3]])]
    result = asyncio.run(batcher.score(groups))
    assert result.scores == [[6.0, 12.0], [11.0], [22.0, 23.0, 24.0]]
    assert result.queue_seconds >= 0
    assert result.compute_seconds > 0
    assert len(model.batches) == 1
    batcher.stop(10)
    assert not batcher.is_working


def test_nothing_is_scored_at_once() -> None:
    model = Model()
    batcher = batcher_of(model)
    assert asyncio.run(batcher.score([])).scores == []
    assert model.batches == []
    batcher.stop(10)


def test_what_arrives_during_a_batch_shares_the_next_one() -> None:
    model = Model()
    batcher = batcher_of(model)

    async def run() -> list[list[list[float]]]:
        model.go_on.clear()
        first = asyncio.create_task(batcher.score([group(1)]))
        await started(model)
        others = [asyncio.create_task(batcher.score([group(number)])) for number in range(2, 7)]
        await asyncio.sleep(0.05)
        assert batcher.num_waiting == 5
        model.go_on.set()
        return [(await task).scores for task in (first, *others)]

    assert asyncio.run(run()) == [[[float(number + 1)]] for number in range(1, 7)]
    assert [len(batch) for batch in model.batches] == [1, 5]
    batcher.stop(10)


def test_requests_with_one_prompt_become_one_group() -> None:
    model = Model()
    batcher = batcher_of(model)
    prompt = range(1, 61)

    async def run() -> list[list[list[float]]]:
        model.go_on.clear()
        first = asyncio.create_task(batcher.score([group(1)]))
        await started(model)
        others = [asyncio.create_task(batcher.score([group(*prompt, answers=[[number]])])) for number in range(5)]
        await asyncio.sleep(0.05)
        model.go_on.set()
        await first
        return [(await task).scores for task in others]

    assert asyncio.run(run()) == [[[1830.0 + number]] for number in range(5)]
    (joined,) = model.batches[1]
    assert len(joined.prompt_ids) == 60
    assert len(joined.response_ids) == 5
    batcher.stop(10)


def test_no_batch_is_above_the_budget_but_for_a_single_conversation() -> None:
    """Twenty groups of 30 tokens and one of 150, and one whose 40 responses of 5 do not fit together."""
    model = Model()
    batcher = batcher_of(model)
    groups = [group(*range(number, number + 29)) for number in range(0, 2000, 100)]
    groups += [group(*range(149)), group(*range(10), answers=[[number] * 5 for number in range(40)])]
    result = asyncio.run(batcher.score(groups))
    assert result.scores == [[float(sum(g.prompt_ids) + sum(ids)) for ids in g.response_ids] for g in groups]
    sizes = [sum(item.num_tokens for item in batch) for batch in model.batches]
    assert max(size for size in sizes if size != 150) <= 100
    assert sizes.count(150) == 1
    batcher.stop(10)


def test_the_oldest_is_always_in_the_next_batch() -> None:
    """A group of another length than all that keep coming is not put off."""
    model = Model()
    batcher = batcher_of(model)

    async def run() -> None:
        model.go_on.clear()
        first = asyncio.create_task(batcher.score([group(1)]))
        await started(model)
        odd = asyncio.create_task(batcher.score([group(*range(500, 590))]))
        await asyncio.sleep(0)
        others = [asyncio.create_task(batcher.score([group(number, 1, 1)])) for number in range(2, 60)]
        await asyncio.sleep(0.05)
        model.go_on.set()
        await asyncio.gather(first, odd, *others)

    asyncio.run(run())
    assert any(item.num_tokens == 91 for item in model.batches[1])
    batcher.stop(10)


def test_a_cancelled_request_is_not_computed() -> None:
    model = Model()
    batcher = batcher_of(model)

    async def run() -> None:
        model.go_on.clear()
        first = asyncio.create_task(batcher.score([group(1)]))
        await started(model)
        second = asyncio.create_task(batcher.score([group(2), group(3)]))
        third = asyncio.create_task(batcher.score([group(4)]))
        await asyncio.sleep(0.05)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert batcher.num_waiting == 1
        model.go_on.set()
        assert (await first).scores == [[2.0]]
        assert (await third).scores == [[5.0]]

    asyncio.run(run())
    seen = {int(item.prompt_ids[0]) for batch in model.batches for item in batch}
    assert seen == {1, 4}
    batcher.stop(10)


@pytest.mark.parametrize(("token", "kind"), [(POISON, RefusalKind.NOT_FINITE), (BROKEN, RefusalKind.FAILED)])
def test_what_the_model_cannot_score_fails_alone(token: int, kind: RefusalKind) -> None:
    model = Model()
    batcher = batcher_of(model)

    async def run() -> list[object]:
        model.go_on.clear()
        first = asyncio.create_task(batcher.score([group(1)]))
        await started(model)
        requests = [[group(2), group(3)], [group(4), group(token)], [group(5)]]
        tasks = [asyncio.create_task(batcher.score(request)) for request in requests]
        await asyncio.sleep(0.05)
        model.go_on.set()
        await first
        return await asyncio.gather(*tasks, return_exceptions=True)

    good, bad, also_good = asyncio.run(run())
    assert good.scores == [[3.0], [4.0]]  # type: ignore[attr-defined]
    assert also_good.scores == [[6.0]]  # type: ignore[attr-defined]
    assert isinstance(bad, Refusal)
    assert bad.kind is kind
    assert asyncio.run(batcher.score([group(8)])).scores == [[9.0]]
    batcher.stop(10)


def test_a_batcher_that_ends_computes_what_waits_and_takes_no_more() -> None:
    model = Model()
    batcher = batcher_of(model)

    async def run() -> None:
        model.go_on.clear()
        tasks = [asyncio.create_task(batcher.score([group(number)])) for number in (1, 2)]
        await started(model)
        ending = threading.Thread(target=batcher.stop, args=(10,))
        ending.start()
        await asyncio.sleep(0.05)
        with pytest.raises(Refusal, match="it is ending"):
            await batcher.score([group(3)])
        model.go_on.set()
        assert [(await task).scores for task in tasks] == [[[2.0]], [[3.0]]]
        ending.join()

    asyncio.run(run())
    assert not batcher.is_working
