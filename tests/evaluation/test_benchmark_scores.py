from __future__ import annotations

from typing import Any

import pytest
from tiny_models import byte_tokenizer, tiny_backbone

from xrlhf.devices import CpuDevice
from xrlhf.errors import DataError
from xrlhf.evaluation import benchmark_scores
from xrlhf.evaluation.benchmark_data import BenchmarkData, LeftOut
from xrlhf.evaluation.benchmark_scores import cut, readable, score_benchmark
from xrlhf.evaluation.benchmarks import find_benchmark
from xrlhf.evaluation.scorer import Scorer
from xrlhf.models.reward_model import RewardModel
from xrlhf.models.tokenizer import prepare_tokenizer
from xrlhf.structures import Group


def scorer(max_length: int = 512, truncation: Any = "drop") -> Scorer:
    model = RewardModel(tiny_backbone()).eval()
    return Scorer(model, prepare_tokenizer(byte_tokenizer()), CpuDevice(), max_length=max_length, truncation=truncation)


def data_of(*pairs: tuple[str, str]) -> BenchmarkData:
    pairs_ = find_benchmark("pairs")
    rows = [
        pairs_.read({"prompt": f"Question {place}", "chosen": chosen, "rejected": rejected}, f"a.jsonl:{place}")
        for place, (chosen, rejected) in enumerate(pairs, 1)
    ]
    return BenchmarkData(pairs_, rows=rows)


def test_scores_lengths_and_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores are those of the scorer, in chunks too; equal answers tie; a byte is a token; the worst pair leads."""
    monkeypatch.setattr(benchmark_scores, "_CHUNK_ROWS", 2)
    data = data_of(("four", "seventeen"), ("one", "x"), ("aa", "a" * 9), ("same", "same"))
    model = scorer()
    found = score_benchmark(model, data)
    wanted = model.score([row.group for row in data.rows])
    assert [row.scores for row in found.rows] == [pytest.approx(scores, abs=1e-5) for scores in wanted]
    assert [row.lengths for row in found.rows] == [(4, 9), (3, 1), (2, 9), (4, 4)]
    assert found.rows[3].scores[0] == found.rows[3].scores[1]
    margins = [row.scores[0] - row.scores[1] for row in found.rows]
    assert [example.margin for example in found.examples] == sorted(margin for margin in margins if margin < 0)
    assert len(found.examples) > 0
    place = margins.index(found.examples[0].margin)
    assert found.examples[0].prompt == f"Question {place + 1}"
    assert score_benchmark(model, data, num_examples=0).examples == []


def test_long_rows_are_left_out_and_named() -> None:
    data = data_of(("four", "x"), ("a" * 200, "x"))
    data.left_out.append(LeftOut("a.jsonl:9", "not-json", "broken"))
    found = score_benchmark(scorer(max_length=128), data)
    assert [row.location for row in found.rows] == ["a.jsonl:1"]
    assert [(row.location, row.reason) for row in found.left_out] == [
        ("a.jsonl:9", "not-json"),
        ("a.jsonl:2", "too-long"),
    ]
    assert found.num_at_limit == 0


def test_cut_rows_are_counted() -> None:
    found = score_benchmark(scorer(max_length=128, truncation="end"), data_of(("four", "x"), ("a" * 200, "x")))
    assert (len(found.rows), found.left_out, found.num_at_limit) == (2, [], 1)
    assert found.rows[1].lengths == (200, 1)


def test_nothing_could_be_scored() -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:1: \d+ tokens, the limit is 40 .no row of Pairs could be scored"):
        score_benchmark(scorer(max_length=40), data_of(("a" * 200, "x")))


def test_texts_are_cut_in_the_middle() -> None:
    assert cut("x" * 700) == "x" * 700
    text = cut("a" * 1000 + "b" * 1000)
    assert text == "a" * 500 + "\n[... 1,300 characters left out ...]\n" + "b" * 200


def test_conversations_as_text() -> None:
    group = Group([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], ("c",))
    assert (readable(group.prompt), readable(group.prompt[:1]), readable("c")) == ("user: a\n\nassistant: b", "a", "c")
