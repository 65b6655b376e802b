from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_models import byte_tokenizer, tiny_backbone

from xrlhf.data.reasons import Reason, RowError
from xrlhf.devices import CpuDevice
from xrlhf.errors import ConfigError, DataError, ModelError
from xrlhf.evaluation import score_file as module
from xrlhf.evaluation.rows import format_map_fn
from xrlhf.evaluation.score_file import ScoreSummary, score_file
from xrlhf.evaluation.scored_rows import BestOf
from xrlhf.evaluation.scorer import Scorer
from xrlhf.models.reward_model import RewardModel
from xrlhf.models.tokenizer import prepare_tokenizer
from xrlhf.structures import Group

ROWS: list[dict[str, Any]] = [
    {"id": 1, "prompt": "Q", "response": "four"},
    {"id": 2, "prompt": "Q", "responses": ["four", "seventeen", "no"]},
    {"id": 3, "text": "as it is"},
    {"id": 4, "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "four"}]},
    {"id": 5, "prompt": "Q", "chosen": "four", "rejected": "seventeen"},
    {"id": 6, "chosen": "\n\nHuman: Q\n\nAssistant: four", "rejected": "\n\nHuman: Q\n\nAssistant: no"},
]
BAD = {"id": 9, "question": "Q"}


class CountingScorer:
    """Scores a response by the length of its text: what is expected can be read off the rows."""

    def encode(self, groups: Sequence[Group]) -> list[Any]:
        return list(groups)

    def score_encoded(self, encoded: Sequence[Any]) -> list[list[float] | RowError]:
        return [item if isinstance(item, RowError) else self.lengths([item])[0] for item in encoded]

    def lengths(self, groups: Sequence[Group]) -> list[list[float] | RowError]:
        results: list[list[float] | RowError] = []
        for group in groups:
            texts = [r if isinstance(r, str) else r[-1]["content"] for r in group.responses]
            too_long = any(len(text) > 30 for text in texts)
            results.append(
                RowError(Reason.TOO_LONG, "40 tokens, the limit is 30") if too_long else [float(len(t)) for t in texts]
            )
        return results


COUNTING: Any = CountingScorer()


def write(file: Path, rows: Sequence[dict[str, Any] | str]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return file


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_every_row_comes_back_in_order_with_its_scores(tmp_path: Path) -> None:
    """A single conversation gets ``score``, several get ``scores`` in the order of the row."""
    data = write(tmp_path / "rows.jsonl", ROWS)
    summary = score_file(COUNTING, data, tmp_path / "out.jsonl")
    scored = [{"score": 4.0}, {"scores": [4.0, 9.0, 2.0]}, {"score": 8.0}, {"score": 4.0}]
    scored += [{"scores": [4.0, 9.0]}, {"scores": [4.0, 2.0]}]
    assert read(tmp_path / "out.jsonl") == [{**row, **score} for row, score in zip(ROWS, scored, strict=True)]
    assert summary == ScoreSummary(num_rows=6, num_scores=10, num_bad=0)


def test_order_is_kept_over_chunks_and_lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_ROWS", 3)
    rows = [{"id": i, "prompt": "Q" * (i % 5), "response": "a" * (1 + i * 7 % 11)} for i in range(10)]
    score_file(COUNTING, write(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl")
    assert [(row["id"], row["score"]) for row in read(tmp_path / "out.jsonl")] == [
        (i, 1 + i * 7 % 11) for i in range(10)
    ]


def test_a_real_model_scores_as_its_scorer_does(tmp_path: Path) -> None:
    from xrlhf.evaluation.rows import scorable_group

    scorer = Scorer(RewardModel(tiny_backbone()).eval(), prepare_tokenizer(byte_tokenizer()), CpuDevice())
    score_file(scorer, write(tmp_path / "rows.jsonl", ROWS), tmp_path / "out.jsonl")
    expected = scorer.score([scorable_group(row) for row in ROWS])
    for row, scores in zip(read(tmp_path / "out.jsonl"), expected, strict=True):
        assert row.get("scores", [row.get("score")]) == pytest.approx(scores, abs=1e-6)


def test_other_formats_are_read(tmp_path: Path) -> None:
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)))
    listed = tmp_path / "rows.json"
    listed.write_text(json.dumps(ROWS))
    for data in (packed, listed):
        assert score_file(COUNTING, data, tmp_path / "out.jsonl").num_rows == 6


# --------------------------------------------------------------------------------------- rows of a named format


def scored(tmp_path: Path, name: str, rows: Sequence[dict[str, Any]], *options: str, **more: Any) -> list[Any]:
    data = write(tmp_path / "rows.jsonl", rows)
    score_file(COUNTING, data, tmp_path / "out.jsonl", map_fn=format_map_fn(name, options), **more)
    return read(tmp_path / "out.jsonl")


def test_scores_stand_in_the_order_of_the_row_whatever_is_preferred(tmp_path: Path) -> None:
    rows = [
        {"id": label, "input": "Q", "output_1": "four", "output_2": "seventeen", "label": label, "note": "kept"}
        for label in (1, 2)
    ]
    assert scored(tmp_path, "llmbar", rows) == [{**row, "scores": [4.0, 9.0]} for row in rows]


def test_ranked_lists_and_single_answers(tmp_path: Path) -> None:
    ranked = {"prompt": "Q", "answers": [{"answer": "a" * n, "rank": rank} for n, rank in ((3, 3), (1, 1), (2, 2))]}
    assert scored(tmp_path, "nectar_map_fn", [ranked]) == [{**ranked, "scores": [3.0, 1.0, 2.0]}]
    wanted = {"prompt": "Q", "completion": "four", "label": False}
    assert scored(tmp_path, "kto", [wanted]) == [{**wanted, "score": 4.0}]


def test_what_training_drops_is_scored(tmp_path: Path) -> None:
    base = {"prompt": "Q", "response 1": "four", "response 2": "no"}
    rows = [
        {**base, "label": 2},
        {**base, "label": 1, "response 2": ""},
        {**base, "label": 0, "response 2": "four"},
    ]
    assert [row["scores"] for row in scored(tmp_path, "autoj", rows)] == [[4.0, 2.0], [4.0, 0.0], [4.0, 4.0]]


def test_options_of_a_format(tmp_path: Path) -> None:
    row = {"prompt": "Q", "response_0": "four", "response_1": "no", "better_response_id": 1}
    assert scored(tmp_path, "pku_saferlhf", [row], "label=better")[0]["scores"] == [4.0, 2.0]
    with pytest.raises(DataError, match=r"rows\.jsonl:1: column 'safer_response_id' is missing"):
        scored(tmp_path, "pku_saferlhf", [row], "label=safer")


def test_a_row_that_is_not_of_the_format(tmp_path: Path) -> None:
    row = {"input": "Q", "output_1": "four", "output_2": "no", "label": 0}
    with pytest.raises(DataError, match=r"rows\.jsonl:1: label is 0; expected 1 or 2 \(--skip-bad"):
        scored(tmp_path, "llmbar", [row])
    (kept,) = scored(tmp_path, "llmbar", [row], skip_bad=True)
    assert kept == {**row, "error": "bad-label: label is 0; expected 1 or 2"}


def test_a_real_model_scores_a_format_as_its_scorer_does(tmp_path: Path) -> None:
    scorer = Scorer(RewardModel(tiny_backbone()).eval(), prepare_tokenizer(byte_tokenizer()), CpuDevice())
    row = {"input": "Q", "output_1": "four", "output_2": "seventeen", "label": 2}
    data = write(tmp_path / "rows.jsonl", [row])
    score_file(scorer, data, tmp_path / "out.jsonl", map_fn=format_map_fn("llmbar"))
    ask = [{"role": "user", "content": "Q"}]
    answers = tuple([{"role": "assistant", "content": row[name]}] for name in ("output_1", "output_2"))
    (expected,) = scorer.score([Group(ask, answers)])
    assert read(tmp_path / "out.jsonl")[0]["scores"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("llmbra", (), "no format is called 'llmbra'; nearest: 'llmbar'"),
        ("pku_saferlhf", (), "pku_saferlhf_map_fn has no default for label"),
        ("llmbar", ("empty",), "format option 'empty': expected name=value, such as label=safer"),
        ("llmbar", ("a.b=1",), "format option 'a.b=1': expected name=value"),
        ("llmbar", ("full=1",), "map_fn 'llmbar_map_fn': got an unexpected keyword argument 'full'"),
        ("no_such_package.map_fn", (), "no module 'no_such_package'"),
    ],
)
def test_formats_that_there_are_not(name: str, options: Sequence[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        format_map_fn(name, options)


def test_a_map_function_of_ones_own() -> None:
    assert format_map_fn("xrlhf.data.map_fns.hh_map_fn")({"chosen": PAIR[0], "rejected": PAIR[1]}).responses


PAIR = ("\n\nHuman: Q\n\nAssistant: four", "\n\nHuman: Q\n\nAssistant: no")


# ------------------------------------------------------------------------------------------------ bad rows


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (BAD, r"rows\.jsonl:2: found id, question; expected one of"),
        ({"prompt": "Q", "response": "x" * 40}, r"rows\.jsonl:2: 40 tokens, the limit is 30"),
        ({"text": 3.5, "messages": 7}, r"rows\.jsonl:2: messages is number; expected a list of messages"),
        ('{"prompt": ', r"rows\.jsonl:2: Expecting value"),
        ("[1, 2]", r"rows\.jsonl:2: "),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(bad: dict[str, Any] | str, message: str, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", [ROWS[0], bad, ROWS[1]])
    with pytest.raises(DataError, match=message) as caught:
        score_file(COUNTING, data, tmp_path / "out.jsonl")
    assert "--skip-bad writes such rows without a score" in str(caught.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["rows.jsonl"]


def test_an_earlier_result_survives_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("earlier")
    with pytest.raises(DataError):
        score_file(COUNTING, write(tmp_path / "rows.jsonl", [BAD]), tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "earlier"


def test_skip_bad_writes_the_reason_in_place_of_a_score(tmp_path: Path) -> None:
    too_long = {"prompt": "Q", "response": "x" * 40}
    data = write(tmp_path / "rows.jsonl", [ROWS[0], BAD, "not json", too_long, ROWS[1]])
    summary = score_file(COUNTING, data, tmp_path / "out.jsonl", skip_bad=True)
    first, missing, broken, long, last = read(tmp_path / "out.jsonl")
    assert first == {**ROWS[0], "score": 4.0}
    assert last == {**ROWS[1], "scores": [4.0, 9.0, 2.0]}
    assert missing["error"].startswith("missing-column: found id, question; expected one of")
    assert {key: missing[key] for key in BAD} == BAD
    assert broken["error"].startswith("not-json: ")
    assert long == {**too_long, "error": "too-long: 40 tokens, the limit is 30"}
    assert summary == ScoreSummary(num_rows=5, num_scores=4, num_bad=3)


def test_a_bad_row_keeps_no_score_of_an_earlier_run(tmp_path: Path) -> None:
    stale = {"prompt": "Q", "response": "x" * 40, "score": 1.0, "scores": [2.0]}
    score_file(COUNTING, write(tmp_path / "rows.jsonl", [stale]), tmp_path / "out.jsonl", skip_bad=True)
    (row,) = read(tmp_path / "out.jsonl")
    assert sorted(row) == ["error", "prompt", "response"]


def test_a_model_that_fails_leaves_nothing(tmp_path: Path) -> None:
    class Broken(CountingScorer):
        def score_encoded(self, encoded: Sequence[Any]) -> Any:
            raise ModelError("the model gives scores that are not finite")

    with pytest.raises(ModelError, match="not finite"):
        score_file(Broken(), write(tmp_path / "rows.jsonl", ROWS), tmp_path / "out.jsonl", skip_bad=True)  # type: ignore[arg-type]
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


# -------------------------------------------------------------------------------------- the file written


def test_the_input_may_be_replaced(tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", ROWS[:1])
    score_file(COUNTING, data, data)
    score_file(COUNTING, data, data)
    assert read(data) == [{**ROWS[0], "score": 4.0}]


def test_the_folder_is_made(tmp_path: Path) -> None:
    score_file(COUNTING, write(tmp_path / "rows.jsonl", ROWS[:1]), tmp_path / "a" / "b" / "out.jsonl")
    assert len(read(tmp_path / "a" / "b" / "out.jsonl")) == 1


def test_a_folder_is_refused_as_output_before_anything_is_scored(tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(DataError, match="is a folder: name a file to write"):
        score_file(None, data, tmp_path)  # type: ignore[arg-type]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(DataError, match=r"rows\.jsonl/out\.jsonl cannot be written"):
        score_file(COUNTING, data, data / "out.jsonl")


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        score_file(COUNTING, tmp_path / "nowhere.jsonl", tmp_path / "out.jsonl")


def test_text_is_written_as_it_is(tmp_path: Path) -> None:
    row = {"prompt": "¿Qué?", "response": "四"}
    score_file(COUNTING, write(tmp_path / "rows.jsonl", [row]), tmp_path / "out.jsonl")
    assert "¿Qué?" in (tmp_path / "out.jsonl").read_text(encoding="utf-8")


def test_half_a_surrogate_pair_in_another_column_passes_through(tmp_path: Path) -> None:
    """JSON can say it, UTF-8 cannot."""
    row = {"id": "\ud83d", "prompt": "Q", "response": "é"}
    score_file(COUNTING, write(tmp_path / "rows.jsonl", [row]), tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl") == [{**row, "score": 1.0}]


def test_what_json_has_no_type_for_becomes_text(tmp_path: Path) -> None:
    import datetime as dt

    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"prompt": ["Q"], "response": ["four"], "day": [dt.date(2024, 2, 29)], "text": [None]}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    score_file(COUNTING, tmp_path / "rows.parquet", tmp_path / "out.jsonl")
    (row,) = read(tmp_path / "out.jsonl")
    assert (row["day"], row["score"]) == ("2024-02-29", 4.0)


# ------------------------------------------------------------------------------------------------ best of n


def test_the_best_response_of_every_row(tmp_path: Path) -> None:
    """Scores are lengths: 4, 9, 2; one; 8; 4; 4, 9; 4, 2. The best are 4, 9, 8, 4, 9, 4 (38), all of them sum to 50."""
    rows = BestOf()
    summary = score_file(COUNTING, write(tmp_path / "rows.jsonl", ROWS), tmp_path / "out.jsonl", rows=rows)
    best = [
        {"response": "four", "score": 4.0, "best_index": 0, "scores": [4.0]},
        {"response": "seventeen", "score": 9.0, "best_index": 1, "scores": [4.0, 9.0, 2.0]},
        {"response": "as it is", "score": 8.0, "best_index": 0, "scores": [8.0]},
        {"response": ROWS[3]["messages"], "score": 4.0, "best_index": 0, "scores": [4.0]},
        {"response": "seventeen", "score": 9.0, "best_index": 1, "scores": [4.0, 9.0]},
        {"response": ROWS[5]["chosen"], "score": 4.0, "best_index": 0, "scores": [4.0, 2.0]},
    ]
    assert read(tmp_path / "out.jsonl") == [{**row, **more} for row, more in zip(ROWS, best, strict=True)]
    assert summary == ScoreSummary(num_rows=6, num_scores=10, num_bad=0)
    assert rows.summary() == (
        f"best of 1.667 responses on average: mean score {38 / 6:.4f}, of all 5.0000; "
        "0 of 6 rows have several best, the first was taken"
    )


def test_of_equal_scores_the_first_wins_and_is_counted(tmp_path: Path) -> None:
    data = write(
        tmp_path / "rows.jsonl",
        [
            {"prompt": "Q", "responses": ["no", "four", "five", "nine"]},
            {"prompt": "Q", "responses": ["no", "on", "four"]},
        ],
    )
    rows = BestOf()
    score_file(COUNTING, data, tmp_path / "out.jsonl", rows=rows)
    first, second = read(tmp_path / "out.jsonl")
    assert (first["response"], first["best_index"], second["response"]) == ("four", 1, "four")
    # Two low scores that are alike are no tie.
    assert rows.num_ties == 1
    assert "1 of 2 rows have several best, the first was taken" in rows.summary()


@pytest.mark.parametrize(("n", "best"), [(1, "no"), (2, "four"), (3, "seventeen"), (9, "seventeen")])
def test_the_first_n_responses_alone_count(tmp_path: Path, n: int, best: str) -> None:
    data = write(tmp_path / "rows.jsonl", [{"prompt": "Q", "responses": ["no", "four", "seventeen"]}])
    summary = score_file(COUNTING, data, tmp_path / "out.jsonl", rows=BestOf(n))
    (row,) = read(tmp_path / "out.jsonl")
    assert (row["response"], len(row["scores"])) == (best, min(n, 3))
    assert summary.num_scores == min(n, 3)


class RefusingScorer(CountingScorer):
    """Refuses long texts when it encodes, as the real one does, the group as a whole."""

    def encode(self, groups: Sequence[Group]) -> list[Any]:
        return [
            result if isinstance(result, RowError) else group
            for group, result in zip(groups, self.lengths(groups), strict=True)
        ]


def test_responses_that_cannot_be_scored(tmp_path: Path) -> None:
    """With --skip-bad the others are chosen from; a row without any keeps its reason."""
    long = "x" * 40
    data = write(
        tmp_path / "rows.jsonl",
        [
            {"prompt": "Q", "responses": [long, "no", "four"]},
            {"prompt": "Q", "responses": [long, long], "best_index": 7},
            {"prompt": "Q", "responses": []},
        ],
    )
    scorer: Any = RefusingScorer()
    with pytest.raises(DataError, match=r"rows\.jsonl:1: 40 tokens, the limit is 30"):
        score_file(scorer, data, tmp_path / "out.jsonl", rows=BestOf())
    assert not (tmp_path / "out.jsonl").exists()
    rows = BestOf()
    summary = score_file(scorer, data, tmp_path / "out.jsonl", skip_bad=True, rows=rows)
    first, second, third = read(tmp_path / "out.jsonl")
    assert (first["response"], first["best_index"], first["scores"]) == ("four", 2, [None, 2.0, 4.0])
    assert second == {"prompt": "Q", "responses": [long, long], "error": "too-long: 40 tokens, the limit is 30"}
    assert "responses is an empty list" in third["error"]
    assert summary == ScoreSummary(num_rows=3, num_scores=2, num_bad=2)
    assert rows.summary() == (
        "best of 2 responses on average: mean score 4.0000, of all 3.0000; 0 of 1 rows have several best, the first "
        "was taken; 1 responses could not be scored"
    )
    # Written whole, a row with a response that cannot be scored stays a bad row.
    assert score_file(scorer, data, tmp_path / "all.jsonl", skip_bad=True).num_bad == 3


def test_best_of_nothing() -> None:
    assert BestOf().summary() == "no row has a best response"
    with pytest.raises(ConfigError, match="best of 0: choose among 1 or more responses"):
        BestOf(0)


def test_best_of_with_a_real_model(tmp_path: Path) -> None:
    scorer = Scorer(RewardModel(tiny_backbone()).eval(), prepare_tokenizer(byte_tokenizer()), CpuDevice())
    data = write(tmp_path / "rows.jsonl", [{"prompt": "Q", "responses": ["four", "seventeen", "no", "never mind"]}])
    score_file(scorer, data, tmp_path / "all.jsonl")
    score_file(scorer, data, tmp_path / "best.jsonl", rows=BestOf())
    (all_scores,), (best,) = read(tmp_path / "all.jsonl"), read(tmp_path / "best.jsonl")
    assert best["scores"] == pytest.approx(all_scores["scores"], abs=1e-6)
    assert best["score"] == max(best["scores"]) == best["scores"][best["best_index"]]
    assert best["response"] == ["four", "seventeen", "no", "never mind"][best["best_index"]]
