"""Fixtures shared by the whole test suite."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

REPO_ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return REPO_ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets, named by XRLHF_SHARED_DATA or lying beside the clone."""
    folder = Path(os.environ.get("XRLHF_SHARED_DATA", REPO_ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data sets not found at {folder}: set XRLHF_SHARED_DATA to their folder")
    return folder


@pytest.fixture
def package_logger() -> Iterator[None]:
    """Gives the package's logger back as it was before a run took it over, and the filters of warnings."""
    logger = logging.getLogger("xrlhf")
    before = (logger.handlers, logger.filters, logger.level, logger.propagate)
    with warnings.catch_warnings():
        yield
    logger.handlers, logger.filters, logger.level, logger.propagate = before


TINY_WORDS = ["ask", "tell", "say", "good", "fine", "bad", "poor", "red", "blue", "green", "one", "two", "three", "."]

TINY_RECIPE = """
from mmengine.optim import CosineAnnealingLR, LinearLR
from torch.optim import AdamW

from xrlhf.data import GroupDataset
from xrlhf.data.map_fns import text_pair_map_fn
from xrlhf.engine.loops import GroupTrainLoop, GroupValLoop
from xrlhf.losses import RankingLoss
from xrlhf.models import RewardModel, backbone_from_config, load_tokenizer

_base_ = "xrlhf::_base_/runtime.py"

seed = 0
work_dir = {work_dir!r}
lr = 1e-2
tokenizer = dict(type=load_tokenizer, path={tokenizer!r})
model = dict(
    type=RewardModel,
    backbone=dict(
        type=backbone_from_config,
        model_type="llama",
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    ),
    lora=dict(r=4, lora_alpha=16, lora_dropout=0.2),
    loss=dict(type=RankingLoss),
)
dataset = dict(
    type=GroupDataset,
    sources=[dict(source={data!r}, map_fn=text_pair_map_fn)],
    max_length=64,
    cache_dir={cache!r},
)
train_dataloader = dict(dataset=dataset, groups_per_step=8, token_budget=64)
val_dataloader = dict(dataset=dict(dataset, max_groups=16), token_budget=256)
optim_wrapper = dict(optimizer=dict(type=AdamW, lr=lr, weight_decay=0.1), max_grad_norm=1.0)
param_scheduler = [
    dict(type=LinearLR, start_factor=0.1, begin=0.0, end=0.2),
    dict(type=CosineAnnealingLR, eta_min=0.0, begin=0.2, end=1.0),
]
train_cfg = dict(type=GroupTrainLoop, max_steps=20, val_interval=10)
val_cfg = dict(type=GroupValLoop)
randomness = dict(seed=seed)
default_hooks = dict(checkpoint=dict(interval=5, max_keep=None), logger=dict(interval=5))
log_processor = dict(window_size=5)
"""


@pytest.fixture(scope="session")
def tiny_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a word-level tokenizer of 16 ids (``tokenizer/``) and 64 pairs of texts (``pairs.jsonl``)."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_parts")
    vocabulary = {word: number for number, word in enumerate(["[UNK]", "[PAD]", *TINY_WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(
        folder / "tokenizer"
    )
    colours, numbers = ["red", "blue", "green"], ["one", "two", "three"]
    rows = [
        {
            "prompt": " ".join(["ask", colours[i % 3], *[numbers[(i + j) % 3] for j in range(i % 5)]]),
            "chosen": f" say {colours[i % 3]} {['good', 'fine'][i % 2]} " + "one " * (i % 4) + ".",
            "rejected": f" tell {['bad', 'poor'][i // 2 % 2]} " + "two " * (i % 3) + ".",
        }
        for i in range(64)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_recipe_in(tiny_parts: Path) -> Callable[..., Path]:
    """Writes a recipe to ``FOLDER/NAME.py`` that trains adapters with dropout, 20 steps of 8 pairs, in a second.

    Its run goes to ``FOLDER/NAME``. ``extra`` is added at the end of the file, where it can assign anything anew.
    """

    def write(folder: Path, name: str = "tiny", *, validate: bool = True, extra: str = "") -> Path:
        text = TINY_RECIPE.format(
            work_dir=str(folder / name),
            tokenizer=str(tiny_parts / "tokenizer"),
            data=str(tiny_parts / "pairs.jsonl"),
            cache=str(tiny_parts / "cache"),
        )
        if not validate:
            extra = f"{extra}\nval_dataloader = None\nval_cfg = None"
        file = folder / f"{name}.py"
        file.write_text(f'"""A tiny run for tests."""\n{text}{extra}\n', encoding="utf-8")
        return file

    return write


@pytest.fixture
def tiny_recipe(tmp_path: Path, tiny_recipe_in: Callable[..., Path]) -> Callable[..., Path]:
    """As ``tiny_recipe_in``, in ``tmp_path``."""
    return partial(tiny_recipe_in, tmp_path)


LAUNCHER_VARIABLES = {
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"),
    *("NPROC_PER_NODE", "NNODES", "NODE_RANK", "ADDR", "PORT"),
}


@pytest.fixture(scope="session")
def command_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of commands that tests start: one thread, no network, nothing inherited from a launcher."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in LAUNCHER_VARIABLES and not name.startswith(("SLURM_", "OMPI_", "PMI_", "PMIX_"))
    }
    return {
        **inherited,
        "PYTHONPATH": os.pathsep.join([str(REPO_ROOT), *filter(None, [inherited.get("PYTHONPATH")])]),
        "XRLHF_CACHE": str(tmp_path_factory.mktemp("cache")),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "COLUMNS": "120",
    }


@pytest.fixture(scope="session")
def xrlhf_in(command_environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the real command line in a process of its own, in FOLDER."""

    def run(
        folder: Path, *arguments: str | Path, environment: dict[str, str] | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "xrlhf.cli.main", *map(str, arguments)],
            cwd=folder,
            env={**command_environment, **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
            **{"timeout": 300, **options},
        )

    return run


@pytest.fixture
def xrlhf(tmp_path: Path, xrlhf_in: Callable[..., Any]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As ``xrlhf_in``, in ``tmp_path``."""
    return partial(xrlhf_in, tmp_path)
