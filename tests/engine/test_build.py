"""From a recipe to a runner."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from xrlhf.config import find_recipe, load_recipe
from xrlhf.devices import CpuDevice, IpexDevice
from xrlhf.engine.build import (
    build_dataset,
    build_eval_loader,
    build_model,
    build_parts,
    build_runner,
    build_tokenizer,
    check_length,
    section_of,
    seed_of,
    strategy_config,
    work_dir_of,
)
from xrlhf.engine.evaluate import evaluate
from xrlhf.engine.launch import Ranks
from xrlhf.engine.runner import GroupRunner
from xrlhf.engine.strategies import DDPStrategy, SingleStrategy
from xrlhf.errors import CheckpointError, ConfigError, DeviceError
from xrlhf.evaluation.scorer import Scorer
from xrlhf.export import save_reward_model
from xrlhf.structures import Group

TWO = Ranks(rank=1, world_size=2, local_rank=1, launcher="pytorch")


KTO = "model.loss={'type': 'xrlhf.losses.policy.KTOLoss', 'threshold': 0.0}"
SHORT_SFT = [f"{split}_dataloader.dataset.sources.0.source.num_groups=60" for split in ("train", "val")]

pytestmark = pytest.mark.usefixtures("package_logger")


@pytest.fixture
def recipe(tiny_recipe: Callable[..., Path]) -> Config:
    return load_recipe(tiny_recipe())


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize(
    ("options", "makes_mismatched"), [([], False), (["model.loss.estimate_kl=False"], False), ([KTO], True)]
)
def test_answers_meet_the_wrong_prompt_where_the_loss_asks(options: list[str], makes_mismatched: bool) -> None:
    chosen = options if not options or KTO in options else [KTO, *options]
    parts = build_parts(load_recipe(find_recipe("tiny_sft_cpu"), [*SHORT_SFT, *chosen]), Ranks(), CpuDevice())
    assert parts.train_loader.makes_mismatched == makes_mismatched
    assert bool(parts.train_loader.load(0).mismatched) == makes_mismatched


def test_one_group_a_step_has_no_other_prompt() -> None:
    recipe = load_recipe(find_recipe("tiny_sft_cpu"), [*SHORT_SFT, KTO, "groups_per_step=1"])
    with pytest.raises(ConfigError, match=r"two groups or more: set train_dataloader\.groups_per_step to 2 at least"):
        build_parts(recipe, Ranks(), CpuDevice())


@pytest.mark.parametrize(("randomness", "seed"), [(None, 0), ({}, 0), ({"seed": None}, 0), ({"seed": 2**32 - 1},) * 2])
def test_the_seed(randomness: Any, seed: Any) -> None:
    expected = seed if isinstance(seed, int) else 2**32 - 1
    assert seed_of(Config({"randomness": randomness})) == expected
    assert seed_of(Config({})) == 0


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "7", True])
def test_a_wrong_seed(seed: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^the seed must be a whole number from 0 to 4294967295, got {seed!r}$"):
        seed_of(Config({"randomness": {"seed": seed}}))


def test_where_a_run_goes(recipe: Config, tmp_path: Path) -> None:
    assert work_dir_of(recipe) == tmp_path / "tiny"
    recipe.work_dir = None
    assert work_dir_of(recipe) == Path("work_dirs/tiny")


def test_a_section_that_is_missing_or_none(recipe: Config, tmp_path: Path) -> None:
    recipe.optim_wrapper = "AdamW"
    with pytest.raises(ConfigError, match=r"^optim_wrapper must be a dict, got str$"):
        section_of(recipe, "optim_wrapper")
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/tiny\.py has no section 'rl'$"):
        section_of(recipe, "rl")
    with pytest.raises(ConfigError, match=r"^the recipe has no section 'model'$"):
        section_of(Config({}), "model")


def test_a_dataloader_without_a_dataset(recipe: Config) -> None:
    del recipe.train_dataloader["dataset"]
    with pytest.raises(ConfigError, match=r"^train_dataloader has no 'dataset'$"):
        build_dataset(recipe, "train_dataloader", None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        (
            "train_dataloader",
            {"batch_size": 8},
            r"^train_dataloader has no option 'batch_size'; it takes dataset, groups_per_step, shuffle, token_budget$",
        ),
        (
            "train_dataloader",
            {"groups_per_step": ...},
            r"^train_dataloader needs the option 'groups_per_step'; it takes",
        ),
        ("train_dataloader", {"token_budget": ...}, r"^train_dataloader needs the option 'token_budget'; it takes"),
        (
            "train_dataloader",
            {"groups_per_step": 0},
            r"^groups_per_step and token_budget must be at least 1, got 0 and",
        ),
        (
            "val_dataloader",
            {"shuffle": True},
            r"^val_dataloader has no option 'shuffle'; it takes dataset, token_budget$",
        ),
        ("val_dataloader", {"token_budget": ...}, r"^val_dataloader needs the option 'token_budget'; it takes"),
    ],
)
def test_wrong_options_of_a_dataloader(recipe: Config, section: str, change: dict[str, Any], message: str) -> None:
    """An ellipsis stands for an option that is left out."""
    for name, value in change.items():
        if value is ...:
            del recipe[section][name]
        else:
            recipe[section][name] = value
    with pytest.raises(ConfigError, match=message):
        build_parts(recipe, Ranks())


def test_the_parts_of_one_process_and_of_two(recipe: Config) -> None:
    parts = build_parts(recipe, Ranks())
    assert (len(parts.train_loader.dataset), len(parts.train_loader)) == (64, 8)
    assert parts.val_loader is not None
    assert len(parts.val_loader.dataset) == 16
    shares = [build_parts(recipe, Ranks(rank, 2, rank, "pytorch")) for rank in (0, 1)]
    groups = [
        sorted(int(g) for batch in share.train_loader.load(3).batches for g in batch.group_ids[batch.group_weights > 0])
        for share in shares
    ]
    # Between them the two hold the groups of the step, none twice.
    assert sorted(groups[0] + groups[1]) == sorted(parts.train_loader.group_ids(3).tolist())
    recipe.val_dataloader = None
    assert build_parts(recipe, Ranks()).val_loader is None


def test_the_weights_follow_from_the_seed(recipe: Config) -> None:
    tokenizer = build_tokenizer(recipe)
    first, again = (build_model(recipe, tokenizer).state_dict() for _ in range(2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    recipe.randomness = {"seed": 1}
    other = build_model(recipe, tokenizer).state_dict()
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


class StaticDevice(CpuDevice):
    """A CPU that would compile a program for every shape."""

    name = "static"
    static_shapes = True
    autocast_types = ()
    compile_backend = "static_backend"


def test_a_device_with_static_shapes_lays_the_model_out_for_them(recipe: Config) -> None:
    tokenizer = build_tokenizer(recipe)
    plain, static = (build_model(recipe, tokenizer, device) for device in (CpuDevice(), StaticDevice()))
    assert (plain.layout, plain.static_shapes) == ("packed", False)
    assert (static.layout, static.static_shapes) == ("padded", True)
    assert build_parts(recipe, Ranks(), StaticDevice()).model.static_shapes is True
    assert build_parts(recipe, Ranks()).model.static_shapes is False


def test_the_device_names_the_compiler(recipe: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that the recipe names is left as it is."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: asked.append(options))
    tokenizer = build_tokenizer(recipe)
    for compile, device in ((True, CpuDevice()), (True, StaticDevice()), ("eager", StaticDevice()), (True, None)):
        recipe.model.compile = compile
        build_model(recipe, tokenizer, device)
    assert asked == [
        {"backend": "inductor", "dynamic": True},
        {"backend": "static_backend", "dynamic": False},
        {"backend": "eager", "dynamic": False},
        {"backend": "inductor", "dynamic": True},
    ]


def test_a_precision_that_the_device_lacks_is_refused_at_the_start(recipe: Config) -> None:
    recipe.model.precision = "bfloat16"
    build_model(recipe, build_tokenizer(recipe), CpuDevice())
    with pytest.raises(DeviceError, match=r"^device 'static' cannot compute with precision='bfloat16': choose 'float3"):
        build_model(recipe, build_tokenizer(recipe), StaticDevice())


def test_an_exported_directory_is_scored_in_static_shapes(recipe: Config, tmp_path: Path) -> None:
    """By the recipe's validation and by the scorer, to the same numbers as in packed rows."""
    tokenizer = build_tokenizer(recipe)
    save_reward_model(build_model(recipe, tokenizer), tokenizer, tmp_path / "hf")
    metrics = [evaluate(recipe, str(tmp_path / "hf"), device) for device in (CpuDevice(), StaticDevice())]
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-5, abs=1e-6)
    scorers = [Scorer.from_pretrained(str(tmp_path / "hf"), device=device) for device in (CpuDevice(), StaticDevice())]
    assert [scorer.model.layout for scorer in scorers] == ["packed", "padded"]
    group = Group("ask red one", (" say red good .", " tell bad ."))
    assert scorers[1].score([group])[0] == pytest.approx(scorers[0].score([group])[0], rel=1e-5, abs=1e-6)


def test_a_device_that_rewrites_models_needs_them_whole() -> None:
    class Splitting(SingleStrategy):
        keeps_model_whole = False

    strategy = {"type": Splitting}
    assert strategy_config(Config({"strategy": strategy}), TWO, CpuDevice())["type"] is Splitting
    with pytest.raises(
        ConfigError,
        match=r"^device 'ipex' rewrites the model, and Splitting splits it among the processes: choose device 'cpu'",
    ):
        strategy_config(Config({"strategy": strategy}), TWO, IpexDevice())
    assert strategy_config(Config({}), TWO, IpexDevice())["type"] is DDPStrategy


def test_an_evaluation_set_by_itself(recipe: Config) -> None:
    loader = build_eval_loader(recipe, build_tokenizer(recipe))
    assert sum(len(item.datasets) for item in loader) == 16


# ---------------------------------------------------------------- strategies


@pytest.mark.parametrize(
    ("chosen", "ranks", "strategy"),
    [
        (None, Ranks(), SingleStrategy),
        (None, TWO, DDPStrategy),
        ("single", Ranks(), SingleStrategy),
        ("single", Ranks(0, 1, 0, "pytorch"), SingleStrategy),
        ("ddp", TWO, DDPStrategy),
        ({"type": "ddp"}, TWO, DDPStrategy),
        ({"type": "xrlhf.engine.strategies.DDPStrategy"}, TWO, DDPStrategy),
        ({"type": SingleStrategy}, Ranks(), SingleStrategy),
    ],
)
def test_which_strategy(chosen: Any, ranks: Ranks, strategy: type) -> None:
    device = CpuDevice()
    assert strategy_config(Config({"strategy": chosen}), ranks, device) == {"type": strategy, "device": device}


def test_options_of_a_strategy() -> None:
    config = strategy_config(Config({"strategy": {"find_unused_parameters": True}}), TWO, CpuDevice())
    assert (config["type"], config["find_unused_parameters"]) == (DDPStrategy, True)


@pytest.mark.parametrize(
    ("chosen", "ranks", "message"),
    [
        ("zero9", Ranks(), r"^unknown strategy 'zero9': choose one of single, ddp, fsdp, fsdp_offload, zero1, "),
        # Each process would train on its share and never hear of the other's.
        ("single", TWO, r"^strategy 'single' trains in one process and 2 were started: choose 'ddp', or start one$"),
        ("ddp", Ranks(), r"^strategy 'ddp' needs processes to share the work: set NPROC_PER_NODE, or leave --strategy"),
    ],
)
def test_a_strategy_that_does_not_fit(chosen: Any, ranks: Ranks, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        strategy_config(Config({"strategy": chosen}), ranks, CpuDevice())


# ---------------------------------------------------------------- runners


def test_a_runner_and_what_it_writes_before_training(recipe: Config, tmp_path: Path) -> None:
    recipe.hub_token = "hf_0123456789abcdef"
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "iter_7.pth.tmp").touch()
    runner = build_runner(recipe)
    assert isinstance(runner, GroupRunner)
    assert type(runner.strategy) is SingleStrategy
    start = tmp_path / "tiny" / runner.timestamp
    assert {path.name for path in (tmp_path / "tiny").iterdir()} == {start.name, "tiny.py", "data_report.json"}
    report = json.loads((tmp_path / "tiny" / "data_report.json").read_text())
    assert [next(iter(report[split].values()))["num_groups_used"] for split in ("train", "val")] == [64, 16]
    assert "device cpu" in (start / f"{runner.timestamp}.log").read_text()
    # The secret is in no file, and the recipe reads back as it was but for it.
    for path in (tmp_path / "tiny").rglob("*"):
        assert not path.is_file() or b"hf_0123456789abcdef" not in path.read_bytes()
    written = load_recipe(tmp_path / "tiny" / "tiny.py")
    assert written.to_dict() == {**load_recipe(recipe.filename).to_dict(), "hub_token": "***"}


def test_a_recipe_inside_its_own_work_dir_is_not_overwritten(recipe: Config, tmp_path: Path) -> None:
    source = Path(recipe.filename).read_text()
    recipe.work_dir = str(tmp_path)
    build_runner(recipe)
    assert Path(recipe.filename).read_text() == source
    assert load_recipe(tmp_path / "tiny_resolved.py").work_dir == str(tmp_path)


def test_no_section_of_a_recipe_may_be_wrong(recipe: Config) -> None:
    recipe.log_level = "LOUD"
    with pytest.raises(ConfigError, match=r"^log_level must be one of"):
        build_runner(recipe)
    recipe.log_level = "INFO"
    recipe.device = "abacus"
    with pytest.raises(DeviceError, match=r"^unknown device 'abacus'"):
        build_runner(recipe)


def test_a_fresh_start_does_not_mix_with_an_older_run(recipe: Config, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "iter_3.pth").touch()
    with pytest.raises(CheckpointError) as error:
        build_runner(recipe)
    assert str(error.value) == (
        f"{tmp_path / 'tiny'} already holds iter_3.pth: add --resume to go on from it, or choose another --work-dir"
    )


def test_nothing_to_go_on_from(recipe: Config, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=rf"^--resume, but {tmp_path}/tiny holds no checkpoint: use --resume auto"
    ):
        build_runner(recipe, resume=True)
    with pytest.raises(CheckpointError, match=r"^--resume gone/iter_1\.pth: there is no such checkpoint file$"):
        build_runner(recipe, resume="gone/iter_1.pth")
    with pytest.raises(CheckpointError, match=rf"^--load-from {tmp_path}: there is no such checkpoint file$"):
        build_runner(recipe, load_from=str(tmp_path))
    # Nothing was made for a run that never began.
    assert not (tmp_path / "tiny").exists()


def test_a_work_dir_that_cannot_be_made(recipe: Config, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    recipe.work_dir = str(tmp_path / "file" / "run")
    with pytest.raises(ConfigError, match=rf"^work_dir {tmp_path}/file/run cannot be made: Not a directory$"):
        build_runner(recipe)


@pytest.mark.parametrize(("max_length", "limit"), [(65, 64), (4096, 2048)])
def test_a_max_length_beyond_the_model_is_refused(max_length: int, limit: int) -> None:
    with pytest.raises(ConfigError, match=rf"max_length is {max_length}, but the model reads at most {limit} tokens"):
        check_length("train_dataloader", max_length, limit)


@pytest.mark.parametrize(("max_length", "limit"), [(64, 64), (10**6, None)])
def test_a_max_length_the_model_can_read_is_fine(max_length: int, limit: int | None) -> None:
    check_length("train_dataloader", max_length, limit)


def test_the_commits_of_hub_names_are_logged_and_written(
    recipe: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from xrlhf.engine import build

    def pin(found: Config) -> tuple[dict[str, Any], list[str]]:
        return {**found.to_dict(), "pinned": True}, ["model 'o/m' has no commit"]

    monkeypatch.setattr(build, "pin_revisions", pin)
    build_runner(recipe)
    assert load_recipe(tmp_path / "tiny" / "tiny.py").pinned
    assert "model 'o/m' has no commit" in capsys.readouterr().out
