from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from xrlhf.config import check_recipe, load_recipe
from xrlhf.errors import ConfigError

GOOD = """
from recipe_parts import RankingLoss, Trainer
from torch.optim import AdamW

model = dict(type=Trainer, steps=3, loss=dict(type=RankingLoss, gamma=2.0, _scope_="xrlhf"))
tokenizer = dict(type=Trainer.from_name, name="x", padding_side="left")
optim_wrapper = dict(
    type="OptimWrapper", optimizer=dict(type=AdamW, lr=1e-5), paramwise_cfg=dict(norm_decay_mult=0.0), constructor="x"
)
param_scheduler = [dict(type="LinearLR", start_factor=0.1, by_epoch=False, convert_to_iter_based=True)]
custom_hooks = [dict(type="EMAHook", priority="LOW")]
plain = dict(no_type=1)
"""

INJECTED = {"optim_wrapper.optimizer": ["params"], "param_scheduler.*": ["optimizer"]}


def test_a_good_recipe_passes(write: Callable[..., Path]) -> None:
    check_recipe(load_recipe(write(GOOD)), INJECTED)


def test_injected_arguments_are_found_by_path_or_by_type(write: Callable[..., Path]) -> None:
    cfg = load_recipe(write(GOOD))
    with pytest.raises(ConfigError) as error:
        check_recipe(cfg)
    assert str(error.value).splitlines() == [
        "optim_wrapper.optimizer: AdamW needs the argument 'params'",
        "param_scheduler.0: LinearLR needs the argument 'optimizer'",
    ]
    check_recipe(cfg, {"torch.optim.*": ["params"], "*LR": ["optimizer"]})


def test_all_problems_are_listed_one_a_line(write: Callable[..., Path]) -> None:
    cfg = load_recipe(
        write(
            """
            from recipe_parts import CONSTANT, RankingLoss, Trainer, map_row
            model = dict(type=Trainer, loss=dict(type=RankingLoss, gama=1), nothing_like_it=2)
            data = [dict(type="recipe_parts.map_rows"), (dict(type=map_row, colum="x", row=None),)]
            hook = dict(type="CheckpointHok")
            other = dict(type="recipe_parts.CONSTANT")
            number = dict(type=3)
            hooks = [dict(type="EMAHook", priorty=1)]
            """
        )
    )
    with pytest.raises(ConfigError) as error:
        check_recipe(cfg)
    lines = str(error.value).splitlines()
    assert lines[:5] == [
        "model: Trainer has no argument 'nothing_like_it'",
        "model: Trainer needs the argument 'steps'",
        "model.loss: RankingLoss has no argument 'gama'; nearest: 'gamma'",
        "data.0: type 'recipe_parts.map_rows': module 'recipe_parts' has no 'map_rows'; nearest: 'map_row'",
        "data.1.0: map_row has no argument 'colum'; nearest: 'column'",
    ]
    assert lines[5].startswith("hook: type no registry knows 'CheckpointHok'")
    assert "; nearest: 'CheckpointHook'" in lines[5]
    assert lines[6:] == [
        "other: type 'recipe_parts.CONSTANT' is neither a class nor a function",
        "number: type 3 is neither a class nor a function",
        # EMAHook hands further arguments on to its averaged model, so that any name passes.
    ]


def test_a_priority_is_for_hooks_only(write: Callable[..., Path]) -> None:
    file = write(
        """
        from recipe_parts import RankingLoss
        loss = dict(type=RankingLoss, priority=1)
        hook = dict(type="IterTimerHook", priority=1)
        """
    )
    with pytest.raises(ConfigError) as error:
        check_recipe(load_recipe(file))
    assert str(error.value) == "loss: RankingLoss has no argument 'priority'"


def test_what_has_no_signature_is_skipped() -> None:
    check_recipe({"x": {"type": "builtins.dict", "anything": 1}})


PLAIN = """
from recipe_parts import RankingLoss, Trainer, WithPlainDicts

by_keywords = dict(type=Trainer.from_name, name="x", rope_scaling=dict(type="linear", factor=2.0))
by_annotation = dict(type=WithPlainDicts, options=dict(type="dynamic", inner=[dict(type="yarn")]))
"""


def test_a_type_inside_a_plain_dict_is_that_dicts_own(write: Callable[..., Path]) -> None:
    check_recipe(load_recipe(write(PLAIN)))


def test_a_part_inside_a_plain_dict_is_still_checked(write: Callable[..., Path]) -> None:
    """A class, a dotted name and a registered name are parts wherever they stand; so is all that is no plain dict."""
    file = write(
        """
        from recipe_parts import RankingLoss, Trainer, WithPlainDicts
        a = dict(type=Trainer.from_name, name="x", loss=dict(type=RankingLoss, gama=1), b=dict(type="recipe_parts.No"))
        b = dict(type="EMAHook", priority=1, x=dict(type="linear"))
        c = dict(type=WithPlainDicts, options=b, part=dict(type="x"))
        d = dict(type="linear")
        """
    )
    with pytest.raises(ConfigError) as error:
        check_recipe(load_recipe(file))
    lines = str(error.value).splitlines()
    assert lines[0] == "a.loss: RankingLoss has no argument 'gama'; nearest: 'gamma'"
    assert lines[1] == "a.b: type 'recipe_parts.No': module 'recipe_parts' has no 'No'"
    assert lines[2].startswith("c.part: type no registry knows 'x'")
    assert lines[3].startswith("d: type no registry knows 'linear'")
    assert len(lines) == 4
