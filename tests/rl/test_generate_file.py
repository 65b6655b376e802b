"""Files of answers: what is written, what a later call goes on with, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import byte_tokenizer

from xrlhf.data.sources import open_source
from xrlhf.errors import ConfigError, DataError, RewardError
from xrlhf.rl.answer_rows import AnswerRows, Answers, RankedAnswers, RejectedAnswers
from xrlhf.rl.generate_file import GenerateSummary, generate_file
from xrlhf.rl.prompts import AskedRow, PromptEncoder
from xrlhf.rl.samples import PromptRow, Sample
from xrlhf.structures import as_ids

Make = Callable[..., Any]


class Scripted:
    """Answer number j to prompt i is "answer I J"; it notes what it was asked, and may break down."""

    def __init__(self, breaks_at: int | None = None) -> None:
        self.asked: list[tuple[list[int], int, int]] = []
        self.breaks_at = breaks_at

    def sample(self, rows: Sequence[PromptRow], k: int, *, key: int) -> list[list[Sample]]:
        self.asked.append(([row.index for row in rows], k, key))
        if self.breaks_at in [row.index for row in rows]:
            raise RuntimeError("out of memory")
        return [
            [Sample(as_ids([1, 2]), np.zeros(2, np.float32), f"answer {row.index} {j}", "stop") for j in range(k)]
            for row in rows
        ]


def write(file: Path, rows: Sequence[Any]) -> Path:
    file.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return file


def run(
    prompts: Path, out: Path, rollouts: Scripted | None = None, rows: AnswerRows | None = None, **options: Any
) -> GenerateSummary:
    options = {"k": 1, "settings": {"model": "m"}, "batch_prompts": 4, **options}
    return generate_file(
        rollouts or Scripted(),
        PromptEncoder(byte_tokenizer(), max_length=100),
        open_source(str(prompts)),
        out,
        rows or Answers(options["k"]),
        **options,
    )


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write(tmp_path / "prompts.jsonl", [{"prompt": f"question {i}", "id": f"q{i}"} for i in range(10)])


def test_answers_of_a_file(prompts: Path, tmp_path: Path) -> None:
    source, out = Scripted(), tmp_path / "deep" / "out.jsonl"
    assert run(prompts, out, source, k=2, seed=7) == GenerateSummary(0, 10)
    assert source.asked == [([0, 1, 2, 3], 2, 7), ([4, 5, 6, 7], 2, 7), ([8, 9], 2, 7)]
    assert lines(out)[3] == {
        "index": 3,
        "prompt": [{"role": "user", "content": "question 3"}],
        "responses": ["answer 3 0", "answer 3 1"],
        "endings": ["stop", "stop"],
        "num_tokens": [2, 2],
        "id": "q3",
    }
    single = tmp_path / "single.jsonl"
    run(prompts, single)
    assert lines(single)[0]["response"] == "answer 0 0"


def test_a_call_that_broke_down_is_gone_on_with(prompts: Path, tmp_path: Path) -> None:
    """What was written stays; a line that was cut short is drawn again; the whole is as if nothing had happened."""
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    run(prompts, whole)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(prompts, out, Scripted(breaks_at=5))
    assert len(lines(out)) == 4
    with out.open("a", encoding="utf-8") as file:
        file.write('{"index": 4, "prompt": [{"role": "us')
    source = Scripted()
    assert run(prompts, out, source) == GenerateSummary(4, 6)
    assert source.asked[0] == ([4, 5, 6, 7], 1, 0)
    assert out.read_bytes() == whole.read_bytes()
    again = Scripted()
    assert run(prompts, out, again) == GenerateSummary(10, 0)
    assert again.asked == []
    assert out.read_bytes() == whole.read_bytes()


def test_nothing_but_a_torn_line(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(RuntimeError):
        run(prompts, out, Scripted(breaks_at=0))
    out.write_text("{" + "x" * 200_000, encoding="utf-8")
    assert run(prompts, out) == GenerateSummary(0, 10)
    assert len(lines(out)) == 10


def test_the_first_so_many(prompts: Path, tmp_path: Path) -> None:
    """More of them may be asked for later."""
    out = tmp_path / "out.jsonl"
    assert run(prompts, out, max_prompts=3).num_written == 3
    assert run(prompts, out, max_prompts=5) == GenerateSummary(3, 2)
    assert [row["index"] for row in lines(out)] == [0, 1, 2, 3, 4]


def test_other_settings_are_refused(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(prompts, out)
    before = out.read_bytes()
    for options, message in (
        ({"k": 2}, "was begun with k=1, and now it is 2: name another file, or remove that one to begin anew"),
        ({"seed": 1}, "was begun with seed=0, and now it is 1"),
        ({"settings": {"model": "n"}}, "was begun with model='m', and now it is 'n'"),
        ({"settings": {"model": "m", "adapter": "a"}}, "was begun with adapter=None, and now it is 'a'"),
    ):
        with pytest.raises(DataError, match=message):
            run(prompts, out, **options)
    assert out.read_bytes() == before
    out.unlink()
    assert run(prompts, out, seed=1).num_written == 10


def test_files_of_others_are_left_alone(prompts: Path, tmp_path: Path) -> None:
    foreign = write(tmp_path / "foreign.jsonl", [{"precious": True}])
    with pytest.raises(DataError, match="is there already, and nothing beside it says how it was made: name another"):
        run(prompts, foreign)
    assert lines(foreign) == [{"precious": True}]
    with pytest.raises(DataError, match="is a folder: name a file to write"):
        run(prompts, tmp_path)
    out = tmp_path / "out.jsonl"
    run(prompts, out)
    write(out, [{"precious": True}])
    with pytest.raises(DataError, match="cannot be gone on with: its last row has no index"):
        run(prompts, out)
    assert lines(out) == [{"precious": True}]
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match="cannot be written"):
        run(prompts, tmp_path / "file" / "out.jsonl")


def test_bad_prompts(tmp_path: Path) -> None:
    """Said with their place; or left out and counted, with the others in their own places."""
    rows = [{"prompt": "a"}, {"question": [1]}, "{", {"prompt": "x" * 200}, {"prompt": "e"}]
    prompts, out = write(tmp_path / "prompts.jsonl", rows), tmp_path / "out.jsonl"
    with pytest.raises(DataError) as caught:
        run(prompts, out)
    assert str(caught.value) == (
        f"{prompts}:2: question is list; expected text (--skip-bad leaves such prompts out)"
    ) or str(caught.value).endswith(
        "prompts.jsonl:2: question is list; expected text (--skip-bad leaves such prompts out)"
    )
    assert lines(out) == []
    source = Scripted()
    summary = run(prompts, out, source, skip_bad=True)
    assert [row["index"] for row in lines(out)] == [0, 4]
    assert source.asked == [([0], 1, 0), ([4], 1, 0)]
    assert summary.left_out == {"wrong-type": 1, "not-json": 1, "too-long": 1}
    assert summary.first_left_out is not None
    assert summary.first_left_out.endswith("prompts.jsonl:2: question is list; expected text")


def test_numbers_that_are_refused(prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_prompts must be 1 or more, got 0"):
        run(prompts, tmp_path / "out.jsonl", batch_prompts=0)
    with pytest.raises(ConfigError, match="max_prompts must be 1 or more, got 0"):
        run(prompts, tmp_path / "out.jsonl", max_prompts=0)
    assert not (tmp_path / "out.jsonl").exists()


def test_columns_that_are_no_json(tmp_path: Path) -> None:
    """Dates of a Parquet file become text."""
    import datetime as dt

    import pyarrow as pa
    import pyarrow.parquet as pq

    day = dt.date(2026, 1, 2)
    pq.write_table(pa.table({"prompt": ["a"], "day": [day]}), tmp_path / "prompts.parquet")
    run(tmp_path / "prompts.parquet", tmp_path / "out.jsonl")
    assert lines(tmp_path / "out.jsonl")[0]["day"] == "2026-01-02"


# ------------------------------------------------------------------------------------------- pairs and rankings


def asked_rows(*answers: Any, prompt: Any = None) -> list[AskedRow]:
    prompt = prompt or [{"role": "user", "content": "Q"}]
    return [AskedRow(prompt, answer, {"id": 1, "response": "of the file", "messages": []}) for answer in answers]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_rejected_answers(prompt_row: Make, drawn: Make) -> None:
    asked = asked_rows(
        said("strong"), None, said("same "), said("strong"), [*said("a"), {"role": "user", "content": "b"}, *said("c")]
    )
    rows = [prompt_row(index=i) for i in range(5)]
    found = RejectedAnswers().rows(asked, rows, [drawn("weak"), drawn("x"), drawn("same"), drawn(" \n"), drawn("y")])
    assert found[0] == {
        "index": 0,
        "prompt": [{"role": "user", "content": "Q"}],
        "chosen": "strong",
        "rejected": "weak",
        "id": 1,
    }
    assert found[1:4] == [
        "the row has no answer to choose",
        "the drawn answer is the chosen one",
        "the drawn answer is blank",
    ]
    assert isinstance(found[4], dict)
    assert found[4]["chosen"] == asked[4].answer
    text = RejectedAnswers().rows(asked_rows(" blue", prompt="sky"), [prompt_row("sky", text=True)], [drawn(" red")])
    assert text[0] == {"index": 0, "prompt": "sky", "chosen": " blue", "rejected": " red", "id": 1}


class ByLength:
    """Rewards an answer by the number of its characters; "?" says nothing."""

    def rewards(self, rows: Any, samples: Any) -> np.ndarray:
        return np.array([[np.nan if s.text == "?" else float(len(s.text)) for s in row] for row in samples])


def test_ranked_answers(prompt_row: Make, drawn: Make) -> None:
    """Best first; what is blank, the same or without a reward is left out; of equal ones the first stays first."""
    samples = [
        drawn("aa", "bbbb", "cc", "bbbb", " "),
        drawn("a", "a", "", "?", ""),
        drawn("aa", "bb", "cc", "dd", "ee"),
    ]
    rows = [prompt_row(index=i) for i in range(3)]
    found = RankedAnswers(ByLength()).rows(asked_rows(None, None, None), rows, samples)
    assert found[0] == {
        "index": 0,
        "prompt": [{"role": "user", "content": "Q"}],
        "responses": ["bbbb", "aa", "cc"],
        "ratings": [4.0, 2.0, 2.0],
        "id": 1,
    }
    assert found[1:] == ["fewer than two different answers", "all answers are rated alike"]
    pairs = RankedAnswers(ByLength(), pairs=True).rows(asked_rows(None), rows[:1], samples[:1])
    assert pairs[0] == {
        "index": 0,
        "prompt": [{"role": "user", "content": "Q"}],
        "chosen": "bbbb",
        "rejected": "cc",
        "margin": 2.0,
        "chosen_score": 4.0,
        "rejected_score": 2.0,
        "id": 1,
    }


def test_what_gives_no_row_is_counted(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    summary = run(prompts, out, rows=RejectedAnswers())
    assert summary.left_out == {"the row has no answer to choose": 10}
    assert summary.first_left_out is not None
    assert summary.first_left_out.endswith("prompts.jsonl:1: the row has no answer to choose")
    assert lines(out) == []


def test_a_reward_that_fails_loses_nothing(prompts: Path, tmp_path: Path) -> None:
    class Failing(ByLength):
        def rewards(self, rows: Any, samples: Any) -> np.ndarray:
            if rows[0].index >= 4:
                raise RewardError("gone")
            return np.array([[1.0, 2.0]] * len(rows))

    out = tmp_path / "out.jsonl"
    with pytest.raises(RewardError, match="gone"):
        run(prompts, out, rows=RankedAnswers(Failing()), k=2)
    assert [row["index"] for row in lines(out)] == [0, 1, 2, 3]
