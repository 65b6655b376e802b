from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xrlhf.config import load_recipe
from xrlhf.config.overrides import parse_overrides, parse_value
from xrlhf.errors import ConfigError

Write = Callable[..., Path]

RECIPE = """
from recipe_parts import RankingLoss, Trainer

lr = 1e-5
steps = 100
warmup = steps // 10
name = "tiny"
resume = None
shuffle = True
tags = ["a", "b"]
model = dict(
    type=Trainer,
    loss=dict(type=RankingLoss, gamma=1.0),
    steps=steps,
    betas=(0.9, 0.999),
    clip=None,
    callback=None,
)
optimizer = dict(lr=lr, groups=[dict(lr=lr * 10), dict(lr=lr / 10)])
train = dict(sources=[dict(path="/a", max_rows=None), dict(path="/b")], custom_keys={"model.head": dict(lr_mult=1.0)})
"""


@pytest.fixture
def recipe(write: Write) -> Path:
    return write(RECIPE)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-3", -3),
        ("1e-5", 1e-5),
        ("1_000", 1000),
        ("true", True),
        ("FALSE", False),
        ("None", None),
        ("none", None),
        ("plain", "plain"),
        ("a,b", "a,b"),
        ("1,2", "1,2"),
        ("(1,2),3", "(1,2),3"),
        ("(1,2),(3,4)", "(1,2),(3,4)"),
        ("((1,2),(3,4))", ((1, 2), (3, 4))),
        (r"('a\\',)", ("a\\",)),
        (r"[x, 'a\',b\\', c]", ["x", "a',b\\", "c"]),
        ("/data/x.jsonl", "/data/x.jsonl"),
        ("'1'", "1"),
        ('"a b"', "a b"),
        ("", ""),
        ("x=y", "x=y"),
        ("it's", "it's"),
        ("[a,b]", ["a", "b"]),
        ("[]", []),
        ("()", ()),
        ("{}", {}),
        ("[ a , true, 'x,y', [1, b], ]", ["a", True, "x,y", [1, "b"]]),
        ("(1,2)", (1, 2)),
        ("(1,)", (1,)),
        ("(a,)", ("a",)),
        ("(a)", "(a)"),
        ("(1)", 1),
        ("{a: 1, 'b': [x, none], 3: c:d}", {"a": 1, "b": ["x", None], 3: "c:d"}),
        ("{a, b}", "{a, b}"),
        ("{1, 2}", "{1, 2}"),
        ("[a", "[a"),
        ("[a}", "[a}"),
        ("[a)]", "[a)]"),
        ("[']', x]", ["]", "x"]),
        ("[[b, ']'], x]", [["b", "]"], "x"]),
        ("b'x'", "b'x'"),
        ("2j", "2j"),
        ("[don't, x]", ["don't", "x"]),
        ("inf", "inf"),
    ],
)
def test_parse_value(text: str, value: Any) -> None:
    got = parse_value(text)
    assert got == value
    assert type(got) is type(value)


LITERALS = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(
        st.lists(inner), st.lists(inner).map(tuple), st.dictionaries(st.one_of(st.text(), st.integers()), inner)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(LITERALS)
def test_python_literals_mean_themselves(value: Any) -> None:
    assert parse_value(repr(value)) == value


@settings(deadline=None)
@given(st.text(alphabet="[](){},:'\"\\ ab1.-=", max_size=30))
def test_any_text_has_a_value(text: str) -> None:
    value = parse_value(text)
    assert isinstance(value, (str, int, float, list, tuple, dict))


@pytest.mark.parametrize("text", ["lr", "=3", "", "a..b=1", ".a=1", "a.=1", " =1"])
def test_malformed_overrides(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected path=value, such as lr=1e-5"):
        parse_overrides([text])


def test_an_override_changes_all_that_is_computed_from_it(recipe: Path) -> None:
    cfg = load_recipe(recipe, ["lr=1e-3", "steps=50"])
    assert cfg.lr == 1e-3
    assert cfg.optimizer.lr == 1e-3
    assert [g.lr for g in cfg.optimizer.groups] == [1e-3 * 10, 1e-3 / 10]
    assert (cfg.warmup, cfg.model.steps) == (5, 50)


def test_paths_reach_lists_and_dotted_keys_and_new_parameters(recipe: Path) -> None:
    cfg = load_recipe(
        recipe,
        [
            "model.loss.gamma=2",
            "model.loss.margin=0.5",
            "model.betas.1=0.95",
            "train.sources.1.path=/x",
            "train.custom_keys.model.head.lr_mult=3",
            "tags.0=c",
            "optimizer.groups.0.lr=1",
        ],
    )
    assert cfg.model.loss.to_dict() == {"type": "recipe_parts.RankingLoss", "gamma": 2.0, "margin": 0.5}
    assert type(cfg.model.loss.gamma) is float
    assert cfg.model.betas == (0.9, 0.95)
    assert [s.path for s in cfg.train.sources] == ["/a", "/x"]
    assert cfg.train.custom_keys == {"model.head": {"lr_mult": 3.0}}
    assert cfg.tags == ["c", "b"]
    assert [g.lr for g in cfg.optimizer.groups] == [1.0, 1e-5 / 10]


@pytest.mark.parametrize(
    ("option", "path", "value"),
    [
        ("lr=1", "lr", 1.0),
        ("lr=inf", "lr", math.inf),
        ("steps=1e3", "steps", 1000),
        ("resume=3", "resume", 3),
        ("resume=auto", "resume", "auto"),
        ("resume={a: 1}", "resume", {"a": 1}),
        ("name=none", "name", None),
        ("name='7'", "name", "7"),
        ("tags=none", "tags", None),
        ("tags=(x,y)", "tags", ["x", "y"]),
        ("tags=[]", "tags", []),
        ("model.loss=none", "model.loss", None),
        ("model.loss={type: recipe_parts.Trainer}", "model.loss", {"type": "recipe_parts.Trainer"}),
        ("model.betas=[0.5, 0.6]", "model.betas", (0.5, 0.6)),
        ("model.clip=2", "model.clip", 2.0),
        ("model.clip=none", "model.clip", None),
        ("model.shuffle=false", "model.shuffle", False),
        ("model.callback=recipe_parts.map_row", "model.callback", "recipe_parts.map_row"),
        ("model.loss.margin=none", "model.loss.margin", None),
        ("model.scale=5", "model.scale", 5),
        ("train.sources.0.max_rows=5", "train.sources.0.max_rows", 5),
        ("model.loss.name=", "model.loss.name", ""),
        ("model.loss.name=a=b", "model.loss.name", "a=b"),
    ],
)
def test_values_take_the_type_that_stands_there(recipe: Path, option: str, path: str, value: Any) -> None:
    got: Any = load_recipe(recipe, [option]).to_dict()
    for part in path.split("."):
        got = got[int(part)] if isinstance(got, list) else got[part]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("lr=fast", r"lr is 1e-05 \(float\), but 'fast' is of type str$"),
        ("lr=true", r"lr is 1e-05 \(float\), but True is of type bool$"),
        ("lr=none", r"lr is 1e-05 \(float\), but None is of type NoneType$"),
        ("steps=1.5", r"steps is 100 \(int\), but 1.5 is of type float$"),
        ("steps=inf", r"steps is 100 \(int\), but 'inf' is of type str$"),
        ("steps=true", r"steps is 100 \(int\), but True is of type bool$"),
        ("shuffle=1", r"shuffle is True \(bool\), but 1 is of type int$"),
        ("name=7", r"name is 'tiny' \(str\), but 7 is of type int; to give a string, quote it twice: name=\"'7'\"$"),
        ("tags=a", r"tags is \['a', 'b'\] \(list\), but 'a' is of type str$"),
        ("model.loss=x", r"model.loss is {.*} \(dict\), but 'x' is of type str$"),
        ("model.loss=[1]", r"model.loss is {.*} \(dict\), but \[1\] is of type list$"),
        ("model.clip=x", r"model.clip is None \(NoneType\), but 'x' is of type str$"),
        ("model.shuffle=none", r"model.shuffle of recipe_parts.Trainer takes bool, but None is of type NoneType$"),
        ("model.loss.margin=x", r"model.loss.margin of recipe_parts.RankingLoss takes float or None, but 'x' is"),
        ("model.scale=x", r"model.scale of recipe_parts.Trainer takes int, but 'x' is of type str$"),
    ],
)
def test_wrong_types_name_what_stands_there_and_what_was_given(recipe: Path, option: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--cfg-options {option.split('=')[0]}=.*: {message}"):
        load_recipe(recipe, [option])


def test_an_integer_default_may_become_a_fraction_where_the_parameter_is_a_float(write: Write) -> None:
    file = write("from recipe_parts import RankingLoss\nloss = dict(type=RankingLoss, gamma=1)\n")
    assert load_recipe(file, ["loss.gamma=0.5"]).loss.gamma == 0.5


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("optimzer.lr=1", "the recipe has no 'optimzer.lr'; nearest: 'optimizer.lr'"),
        ("model.loss.gama=2", "the recipe has no 'model.loss.gama'; nearest: 'model.loss.gamma'"),
        ("model.loss.margn=2", "nearest: 'model.loss.margin'"),
        ("gamma=2", "nearest: 'model.loss.gamma'"),
        ("train.sources.2.path=/x", "the recipe has no 'train.sources.2.path'; nearest: 'train.sources."),
        ("model.loss.gamma.zzz=2", "the recipe has no 'model.loss.gamma.zzz'"),
        ("train.qqqqqqqq=1", "the recipe has no 'train.qqqqqqqq'; train has sources, custom_keys"),
        ("qqqqqqqq=1", "the recipe has no 'qqqqqqqq'; it has lr, steps"),
        ("_private=1", "the recipe has no '_private'"),
        ("optimizer.type=x", "the recipe has no 'optimizer.type'"),
    ],
)
def test_unknown_paths_name_the_nearest(recipe: Path, option: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_recipe(recipe, [option])
    assert message in str(error.value)
    assert str(error.value).startswith(f"--cfg-options {option}: ")


def test_keyword_catchers_do_not_make_every_name_a_parameter(write: Write) -> None:
    file = write("from recipe_parts import Trainer\nmodel = dict(type=Trainer.from_name, name='x')\n")
    with pytest.raises(ConfigError, match=r"the recipe has no 'model\.nam'; nearest: 'model\.name'"):
        load_recipe(file, ["model.nam=y"])
    assert load_recipe(file, ["model.name=y"]).model.name == "y"


def test_the_last_of_equal_overrides_wins_and_a_whole_dict_drops_what_was_set_in_it(recipe: Path) -> None:
    assert load_recipe(recipe, ["lr=1", "steps=5", "lr=2"]).optimizer.lr == 2.0
    # The first one does not loosen the type for the second.
    with pytest.raises(ConfigError, match=r"name is 'tiny' \(str\), but 5"):
        load_recipe(recipe, ["name=none", "name=5"])
    assert load_recipe(recipe, ["model.loss.gamma=7", "model.loss={gamma: 1.5}"]).model.loss == {"gamma": 1.5}
    assert load_recipe(recipe, ["model.loss={gamma: 1.5}", "model.loss.gamma=7"]).model.loss == {"gamma": 7.0}


def test_each_override_is_checked_with_the_earlier_ones_applied(write: Write) -> None:
    file = write(
        """
        from recipe_parts import RankingLoss
        use_lora = False
        model = dict(loss=dict(type="recipe_parts.Trainer"))
        if use_lora:
            model["lora"] = dict(r=8)
        """
    )
    assert load_recipe(file, ["use_lora=true", "model.lora.r=16"]).model.lora == {"r": 16}
    with pytest.raises(ConfigError, match=r"the recipe has no 'model\.lora\.r'"):
        load_recipe(file, ["model.lora.r=16", "use_lora=true"])
    with pytest.raises(ConfigError, match=r"model\.lora\.r=16: with the other overrides the recipe has no"):
        load_recipe(file, ["use_lora=true", "model.lora.r=16", "use_lora=false"])
    loss = load_recipe(file, ["model.loss.type=recipe_parts.RankingLoss", "model.loss.gamma=3"]).model.loss
    assert loss == {"type": "recipe_parts.RankingLoss", "gamma": 3.0}


def test_overrides_hold_against_later_statements(write: Write) -> None:
    file = write(
        """
        a = 1
        b = a
        a += 1
        c = a
        x, y = 1, 2
        z = x + y
        m = dict(k=1)
        m["k"] = 2
        m["n"] = dict(k=3)
        n = m["k"] + m["n"]["k"]
        for step in (1, 2):
            total = step * 10
        last = total
        """
    )
    cfg = load_recipe(file, ["a=5", "x=10", "m.k=7", "m.n.k=8", "total=1"]).to_dict()
    assert cfg == {
        "a": 5, "b": 5, "c": 5, "x": 10, "y": 2, "z": 12, "m": {"k": 7, "n": {"k": 8}}, "n": 15, "total": 1, "last": 1,
    }  # fmt: skip


def test_overriding_one_name_leaves_another_that_shares_its_dict(write: Write) -> None:
    file = write("a = dict(k=1)\nb = a\nc = dict(inner=a)\n")
    assert load_recipe(file, ["b.k=2"]).to_dict() == {"a": {"k": 1}, "b": {"k": 2}, "c": {"inner": {"k": 1}}}
    assert load_recipe(file, ["a.k=2"]).to_dict() == {"a": {"k": 2}, "b": {"k": 2}, "c": {"inner": {"k": 2}}}


def test_overrides_reach_into_bases(write: Write) -> None:
    write("lr = 1.0\nhooks = dict(timer=dict(interval=10, lr=lr), saver=dict(keep=1))\n", "base.py")
    file = write("_base_ = 'base.py'\nhooks = dict(saver=dict(keep=2))\ndouble = _base_.lr * 2\n")
    cfg = load_recipe(file, ["lr=3", "hooks.timer.interval=1", "hooks.saver.keep=9"])
    assert cfg.to_dict() == {
        "lr": 3.0,
        "hooks": {"timer": {"interval": 1, "lr": 3.0}, "saver": {"keep": 9}},
        "double": 6.0,
    }
    # A whole dict replaces the merged one.
    assert load_recipe(file, ["hooks={saver: {keep: 3}}"]).hooks == {"saver": {"keep": 3}}


def test_a_recipe_that_fails_under_an_override_says_so(recipe: Path, write: Write) -> None:
    file = write("batch = 4\nsteps = 100 // batch\n")
    with pytest.raises(ConfigError, match=r"recipe\.py:2: ZeroDivisionError: .* \(with --cfg-options batch=0\)"):
        load_recipe(file, ["batch=0"])


def test_options_in_a_dict_key_that_no_recipe_can_hold_stay_text(recipe: Path) -> None:
    with pytest.raises(ConfigError, match=r"is of type str"):
        load_recipe(recipe, ["model.loss={1.5: 2"])
