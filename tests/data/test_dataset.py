"""Data sets: several sources, folds by prompt, and what a recipe may say about them."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import own_map_fns
import pytest
from tiny_tokenizer import CHATML, byte_tokenizer
from transformers import PreTrainedTokenizerFast

from xrlhf.data.dataset import Fold, GroupDataset, resolve_map_fn
from xrlhf.data.map_fns import hh_map_fn, pair_map_fn
from xrlhf.data.permutation import derive_key
from xrlhf.data.reasons import RowError
from xrlhf.data.sources import MemorySource, open_source
from xrlhf.errors import ConfigError, DataError

Row = dict[str, Any]
Make = Callable[..., GroupDataset]


def pairs(count: int, first: int = 0) -> list[Row]:
    return [{"prompt": f"p{n}", "chosen": f"good {n}", "rejected": "bad"} for n in range(first, first + count)]


def source(rows: list[Row], called: str = "rows", **options: Any) -> dict[str, Any]:
    return {"source": MemorySource(rows, called), "map_fn": pair_map_fn, **options}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a data set with a tokenizer of bytes and a cache of this test's own."""

    def make_it(*sources: Any, **options: Any) -> GroupDataset:
        settings: dict[str, Any] = {
            "tokenizer": byte_tokenizer(),
            "max_length": 99,
            "cache_dir": str(tmp_path / "cache"),
        }
        return GroupDataset(sources, **{**settings, **options})

    return make_it


def rows_of(dataset: GroupDataset) -> list[tuple[int, int]]:
    """(source, row) of every group."""
    return [(dataset[i].dataset, dataset[i].row) for i in range(len(dataset))]


# ---------------------------------------------------------------- several sources


def test_sources_follow_one_another(make: Make) -> None:
    dataset = make(source(pairs(3), "one"), source(pairs(2, 3), "two"))
    assert len(dataset) == 5
    assert dataset.sizes == [3, 2]
    assert rows_of(dataset) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert [dataset.where(i) for i in (0, 2, 4)] == ["one row 0", "one row 2", "two row 1"]


def test_rows_left_out_keep_their_numbers(make: Make) -> None:
    rows = pairs(4)
    rows[1]["chosen"] = ""
    dataset = make(source(rows))
    assert [dataset.where(i) for i in range(3)] == ["rows row 0", "rows row 2", "rows row 3"]


@pytest.mark.parametrize("index", [-1, 5])
def test_an_index_outside_is_refused(make: Make, index: int) -> None:
    dataset = make(source(pairs(5)))
    with pytest.raises(IndexError, match=f"group {index} of a dataset of 5"):
        dataset[index]
    with pytest.raises(IndexError, match=f"group {index} of a dataset of 5"):
        dataset.where(index)


@pytest.mark.parametrize("fold", [None, {"index": 0, "count": 3, "part": "train"}])
def test_token_counts_are_those_of_the_groups(make: Make, fold: dict[str, Any] | None) -> None:
    rows = [{**row, "chosen": "x" * (3 * n + 1)} for n, row in enumerate(pairs(12))]
    dataset = make(source(rows[:7], "one"), source(rows[7:], "two"), fold=fold)
    costs = [dataset[i].num_tokens for i in range(len(dataset))]
    assert dataset.num_tokens().tolist() == costs
    order = np.random.default_rng(0).permutation(len(dataset))
    assert dataset.num_tokens(order).tolist() == [costs[i] for i in order]
    assert dataset.num_tokens(order).dtype == np.int64
    assert dataset.num_tokens(np.array([], dtype=np.int64)).tolist() == []


def test_weights_are_visits_of_each_group_per_epoch(make: Make) -> None:
    dataset = make(source(pairs(6), weight=2), source(pairs(4, 6), weight=0.5), source(pairs(3, 10)))
    assert dataset.weights == [2.0, 0.5, 1.0]
    stream = dataset.stream(seed=0)
    assert stream.epoch_size == 12 + 2 + 3
    visits = Counter(stream(0, 2 * stream.epoch_size).tolist())
    assert [visits[i] for i in range(13)] == [4] * 6 + [1] * 4 + [2] * 3


def test_names_are_told_apart(make: Make) -> None:
    dataset = make(
        source(pairs(1), "a"), source(pairs(1), "a"), source(pairs(1), "a"), source(pairs(1), "b", name="own")
    )
    assert dataset.names == ["a", "a_2", "a_3", "own"]
    assert list(dataset.report()) == dataset.names


def test_a_source_may_be_a_path_and_a_map_function_a_name(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in pairs(3)))
    dataset = make(
        {"source": str(file), "map_fn": "pair_map_fn"}, {"source": {"path": str(file)}, "map_fn": pair_map_fn}
    )
    assert dataset.sizes == [3, 3]
    assert dataset.names == [str(file), f"{file}_2"]
    assert dataset.tables[0].folder == dataset.tables[1].folder


def test_options_of_the_template_reach_it(make: Make) -> None:
    tokenizer = byte_tokenizer(CHATML + "{% if loud %}!{% endif %}")
    plain = make(source(pairs(1)), tokenizer=tokenizer)
    loud = make(source(pairs(1)), tokenizer=tokenizer, chat_template_kwargs={"loud": True})
    assert loud[0].num_tokens == plain[0].num_tokens + 2


def test_cutting_is_passed_on(make: Make) -> None:
    assert max(make(source(pairs(3)), max_length=24, truncation="prompt").num_tokens()) <= 24 + len("bad") + 2


# ---------------------------------------------------------------- folds


def prompts_of(dataset: GroupDataset, rows: list[list[Row]]) -> list[str]:
    return [rows[d][row]["prompt"] for d, row in rows_of(dataset)]


@pytest.mark.parametrize("count", [2, 5])
def test_folds_split_by_prompt(make: Make, count: int) -> None:
    """Two sources share half their prompts, and most prompts have several rows."""
    one = [{**row, "chosen": f"good {k}"} for row in pairs(30) for k in range(3)]
    two = [{**row, "rejected": f"bad {k}"} for row in pairs(30, 15) for k in range(2)]
    sources = (source(one, "one"), source(two, "two"))
    seen: list[tuple[int, int]] = []
    for index in range(count):
        held = make(*sources, fold={"index": index, "count": count, "part": "held_out"})
        train = make(*sources, fold={"index": index, "count": count, "part": "train"})
        assert not set(prompts_of(held, [one, two])) & set(prompts_of(train, [one, two]))
        assert sorted(rows_of(held) + rows_of(train)) == rows_of(make(*sources))
        assert rows_of(held) == sorted(rows_of(held))
        seen += rows_of(held)
    assert sorted(seen) == rows_of(make(*sources)), "every group is held out once"


def test_folds_are_about_equal() -> None:
    """10,000 keys over 5 folds: 2000 each, standard deviation 40; five of them are 200."""
    keys = np.array([derive_key(n) for n in range(10_000)], dtype=np.uint64)
    sizes = [len(Fold(index, 5, "held_out").select(keys)) for index in range(5)]
    assert sum(sizes) == 10_000
    assert all(1800 <= size <= 2200 for size in sizes)


def test_the_seed_of_a_fold_deals_anew() -> None:
    """Held out by both of two independent seeds: a quarter of 4000, standard deviation 27; five of them are 137."""
    keys = np.array([derive_key(n) for n in range(4000)], dtype=np.uint64)
    one, two = (set(Fold(0, 2, "held_out", seed).select(keys).tolist()) for seed in (0, 1))
    assert one == set(Fold(0, 2, "held_out", 0).select(keys).tolist())
    assert 863 <= len(one & two) <= 1137


def test_folds_that_must_never_change() -> None:
    """Pinned: a held-out set must stay held out in a later version."""
    keys = np.array([derive_key(n) for n in range(12)], dtype=np.uint64)
    assert Fold(1, 4, "held_out").select(keys).tolist() == [0, 1, 4, 9, 11]


@pytest.mark.parametrize(
    ("fold", "message"),
    [
        ({"index": 0, "count": 1, "part": "train"}, "fold 0 of 1: need at least 2 folds"),
        ({"index": 3, "count": 3, "part": "train"}, "fold 3 of 3: .*an index below their number"),
        ({"index": -1, "count": 3, "part": "train"}, "fold -1 of 3"),
        ({"index": 0, "count": 3, "part": "test"}, "part of a fold must be 'train' or 'held_out', got 'test'"),
        ({"index": 0, "folds": 3, "part": "train"}, "fold takes index, count and part, .*found index, folds, part"),
        ({"index": 0, "count": 3}, "fold takes index, count and part, .*found index, count"),
    ],
)
def test_impossible_folds_are_refused(make: Make, fold: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make(source(pairs(3)), fold=fold)


def test_an_empty_fold_is_refused(make: Make) -> None:
    key = make(source(pairs(1))).tables[0].prompt_keys
    empty = next(index for index in range(2) if not len(Fold(index, 2, "held_out").select(key)))
    with pytest.raises(DataError, match=r"rows: no group is left after fold=\{'index': \d.* and max_groups=None"):
        make(source(pairs(1)), fold={"index": empty, "count": 2, "part": "held_out"})


def test_whole_texts_can_be_split_too(make: Make) -> None:
    texts = {"source": MemorySource(pairs(40)), "map_fn": own_map_fns.whole_text_map_fn}
    held = make(texts, fold={"index": 0, "count": 2, "part": "held_out"})
    assert 8 <= len(held) <= 32


# ---------------------------------------------------------------- a quick look


def test_only_the_first_groups_of_each_source(make: Make) -> None:
    dataset = make(source(pairs(5), "one"), source(pairs(2, 5), "two"), max_groups=3)
    assert rows_of(dataset) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


def test_only_the_first_groups_of_a_fold(make: Make) -> None:
    fold = {"index": 0, "count": 2, "part": "train"}
    whole = make(source(pairs(20)), fold=fold)
    assert rows_of(make(source(pairs(20)), fold=fold, max_groups=4)) == rows_of(whole)[:4]


# ---------------------------------------------------------------- what a recipe may get wrong


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], "needs at least one source"),
        ([{"source": "x.jsonl"}], r"sources\[0\] needs 'source' and 'map_fn' and may have .*, got \['source'\]"),
        ([{"map_fn": pair_map_fn}], r"sources\[0\] needs .*, got \['map_fn'\]"),
        (
            [source(pairs(1)), source(pairs(1), wieght=2)],
            r"sources\[1\] needs .*, got \['map_fn', 'source', 'wieght'\]",
        ),
        (["data.jsonl"], r"sources\[0\] needs .*, got str"),
        ([source(pairs(1), weight=0)], r"sources\[0\]: weight must be a number above 0 .*, got 0"),
        ([source(pairs(1), weight=-1.5)], "weight must be a number above 0 .*, got -1.5"),
        ([source(pairs(1), weight="2")], "weight must be a number above 0 .*, got '2'"),
        ([source(pairs(1), weight=True)], "weight must be a number above 0 .*, got True"),
        ([source(pairs(1), weight=float("nan"))], "weight must be a number above 0 .*, got nan"),
        ([source(pairs(1), weight=float("inf"))], "weight must be a number above 0 .*, got inf"),
    ],
)
def test_sources_that_say_too_much_or_too_little(make: Make, sources: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make(*sources)


@pytest.mark.parametrize("max_groups", [0, -3])
def test_a_quick_look_at_nothing_is_refused(make: Make, max_groups: int) -> None:
    with pytest.raises(DataError, match=f"max_groups must be at least 1, got {max_groups}"):
        make(source(pairs(5)), max_groups=max_groups)


def test_settings_of_the_encoder_are_checked(make: Make) -> None:
    with pytest.raises(DataError, match="max_length must be at least 2"):
        make(source(pairs(1)), max_length=0)


def test_shares_are_passed_on(make: Make) -> None:
    rows = [*pairs(9), {"prompt": "p"}]
    with pytest.raises(DataError, match=r"max_bad_share=0\.02"):
        make(source(rows))
    with pytest.raises(DataError, match=r"max_left_out_share=0\.05"):
        make(source(rows), max_bad_share=0.1, max_left_out_share=0.05)
    assert len(make(source(rows), max_bad_share=0.1)) == 9


# ---------------------------------------------------------------- map functions


@pytest.mark.parametrize(
    "spec", [hh_map_fn, "hh_map_fn", "xrlhf.data.map_fns.hh_map_fn", "xrlhf.data.map_fns.hh.hh_map_fn"]
)
def test_a_map_function_by_itself_or_by_name(spec: Any) -> None:
    assert resolve_map_fn(spec) is hh_map_fn


def test_a_map_function_of_ones_own_by_dotted_name() -> None:
    assert resolve_map_fn("own_map_fns.drops_all_map_fn") is own_map_fns.drops_all_map_fn


@pytest.mark.parametrize("kind", [hh_map_fn, "hh_map_fn", "xrlhf.data.map_fns.hh_map_fn"])
def test_a_map_function_with_options(kind: Any) -> None:
    found = resolve_map_fn({"type": kind, "empty": "keep"})
    assert isinstance(found, functools.partial)
    assert (found.func, found.keywords) == (hh_map_fn, {"empty": "keep"})
    transcript = "\n\nHuman: q\n\nAssistant:"
    group = found({"chosen": transcript, "rejected": f"{transcript} no"})
    assert group.responses[0][0]["content"] == ""


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hh_map", "no map function is called 'hh_map'; known are .*hh_map_fn.*, or give a dotted name"),
        ("xrlhf.data.map_fns.hh_map", "has no 'hh_map'"),
        ("no_such_package.row_fn", "no module 'no_such_package'"),
        ("xrlhf.data.map_fns.__all__", "is not a function"),
        (5, "map_fn 5 is not a function"),
        ({"empty": "keep"}, "needs 'type', the function; found empty"),
        ({"type": "hh_map_fn", "emtpy": "keep"}, "map_fn 'hh_map_fn': got an unexpected keyword argument 'emtpy'"),
        (
            "pku_saferlhf_map_fn",
            r"map_fn pku_saferlhf_map_fn has no default for label: write dict\(type=pku_saferlhf_map_fn, label=\.\.\.\)"
            "; `xrlhf list-dataset-formats pku_saferlhf_map_fn` says what it may be",
        ),
        ({"type": "ultrafeedback_map_fn", "ties": "keep"}, "ultrafeedback_map_fn has no default for rating: write"),
    ],
)
def test_what_is_no_map_function(spec: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_map_fn(spec)


# ---------------------------------------------------------------- reports


def test_the_report_says_what_became_of_every_row(make: Make) -> None:
    """Bytes by hand: a user turn of "p0" has 10 ids, the answers own 6 + 2 ("good 0") and 3 + 2 ("bad") ids behind 11
    shared ones. Three groups of 10 + 11 + 8 + 5 = 34 are 102; with prompts repeated 29 + 26 = 55 each are 165."""
    rows = pairs(4)
    rows[3]["rejected"] = ""
    dataset = make(source(rows, "odd"), max_groups=2)
    assert dataset.report_lines() == [
        "odd: 3 of 4 rows became groups",
        "  left out 1 (25.0%): an answer is blank [empty], first at odd[3]",
        "  of these, 2 groups are in this split",
        "  102 tokens to compute, 165 if every prompt were repeated (38% saved)",
    ]
    assert dataset.report() == {
        "odd": {
            "num_rows": 4,
            "num_groups": 3,
            "num_duplicates": 0,
            "left_out": {"empty": 1},
            "examples": [["odd[3]", "empty", "rejected is blank"]],
            "num_groups_used": 2,
            "num_tokens": 102,
        }
    }
    assert json.loads(json.dumps(dataset.report())) == dataset.report()


# ---------------------------------------------------------------- a real set


@pytest.fixture(scope="module")
def real_tokenizer(shared_data: Path) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(shared_data / "tokenizer" / "tokenizer.json"))
    tokenizer.add_special_tokens(
        {"pad_token": "<|pad|>", "eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}
    )
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.mark.slow
@pytest.mark.shared_data
def test_all_of_hh_harmless(make: Make, shared_data: Path, real_tokenizer: PreTrainedTokenizerFast) -> None:
    """Rows 86, 516, 925 and 1103 have a blank chosen answer (README of the set); all others are groups."""
    file = shared_data / "hh-rlhf" / "harmless-base.test.jsonl.gz"
    spec = {"source": str(file), "map_fn": "hh_map_fn"}
    dataset = make(spec, tokenizer=real_tokenizer, max_length=4096)
    (table,) = dataset.tables
    assert (table.report.num_rows, len(dataset), table.report.num_duplicates) == (2312, 2308, 0)
    assert table.report.reasons == {"empty": 4}
    assert [e.location for e in table.report.examples] == [f"{file}:{row + 1}" for row in (86, 516, 925, 1103)]

    # Every conversation once more, one by one, through the tokenizer's own method.
    lengths = []
    num_shared = number = 0
    for raw in open_source(str(file)).rows():
        assert not isinstance(raw.value, RowError)
        try:
            group = hh_map_fn(raw.value)
        except RowError:
            continue
        tokenized = dataset[number]
        number += 1
        assert tokenized.row == raw.row
        expected = [
            real_tokenizer.apply_chat_template(conversation, return_dict=True)["input_ids"]
            for conversation in group.conversations()
        ]
        assert [[*tokenized.prompt_ids.tolist(), *ids.tolist()] for ids in tokenized.response_ids] == expected
        lengths += map(len, expected)
        common = sum(1 for _ in takewhile(lambda ids: ids[0] == ids[1], zip(*expected, strict=False)))
        num_shared += min(common, *(len(ids) - 1 for ids in expected))
    assert number == 2308
    assert table.total_conversation_tokens() == sum(lengths) == 1_151_695
    assert table.total_tokens == int(dataset.num_tokens().sum()) == sum(lengths) - num_shared == 732_609

    short = make(spec, tokenizer=real_tokenizer, max_length=512)
    too_long = sum(max(pair) > 512 for pair in zip(lengths[::2], lengths[1::2], strict=True))
    assert short.tables[0].report.reasons == {"empty": 4, "too-long": too_long}
    assert (len(short), too_long) == (2045, 263)

    # 2,310 prompts for 2,312 rows: the two that have two rows stay together.
    held = make(spec, tokenizer=real_tokenizer, max_length=4096, fold={"index": 0, "count": 5, "part": "held_out"})
    train = make(spec, tokenizer=real_tokenizer, max_length=4096, fold={"index": 0, "count": 5, "part": "train"})
    assert len(held) + len(train) == 2308
    keys = table.prompt_keys
    assert len(np.unique(keys)) == 2306
    assert not set(keys[dataset_rows(table, held)].tolist()) & set(keys[dataset_rows(table, train)].tolist())


def dataset_rows(table: Any, part: GroupDataset) -> np.ndarray:
    """Indices in the whole table of the groups of a part."""
    index_of = {table[i].row: i for i in range(len(table))}
    return np.array([index_of[part[i].row] for i in range(len(part))])
