"""Everything a run would do, without doing it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from torch import nn

from xrlhf.config import load_recipe
from xrlhf.engine.dry_run import dry_run, estimate_memory
from xrlhf.engine.launch import Ranks
from xrlhf.errors import ConfigError


@pytest.fixture
def recipe(tiny_recipe: Callable[..., Path]) -> Config:
    return load_recipe(tiny_recipe())


def test_the_report(recipe: Config, tmp_path: Path) -> None:
    """The adapters of rank 4 on the seven matrices of the layer, and the head; 20 steps of 8 groups.

    q, k, v, o: 16 x 16, so 4 * 4 * (16 + 16) = 512. gate, up, down: 16 x 32, so 3 * 4 * (16 + 32) = 576. Head: 16.
    """
    lines = list(dry_run(recipe, Ranks()))
    headings = [line for line in lines if line.startswith("# ---- ")]
    assert headings == [
        "# ---- resolved recipe",
        "# ---- data",
        "# ---- model",
        "# ---- steps",
        "# ---- memory, estimated for one device",
    ]
    model = lines[lines.index("# ---- model") + 1]
    assert model.endswith(f" parameters, {512 + 576 + 16:,} of them trained")
    steps = lines[lines.index("# ---- steps") + 1 : lines.index(headings[-1])]
    assert steps[0] == "20 optimizer steps of 8 groups: 160 groups"
    # 861 tokens in 64 groups are 13.5 per group; 160 groups of that length are 2,152.
    assert steps[1] == "about 2,152 tokens to compute, 13.5 per group"
    assert steps[2].startswith("step 1 has ")
    assert steps[2].endswith(" micro-batch(es) on each of 1 process(es)")
    memory = lines[lines.index(headings[-1]) + 1 : -1]
    assert [line.split()[0] for line in memory] == ["weights", "gradients", "optimizer", "activations", "total"]
    assert all(line.endswith(" MiB") for line in memory)
    assert any(line.startswith("train: ") and "64 of 64 rows became groups" in line for line in lines)
    assert any(line.startswith("val: ") for line in lines)
    assert lines[-1] == "nothing was trained"
    assert not (tmp_path / "tiny").exists()


def test_the_recipe_in_the_report_reads_back(recipe: Config, tmp_path: Path) -> None:
    recipe.hub_token = "hf_0123456789abcdef"
    text = list(dry_run(recipe, Ranks()))[1]
    assert "hf_0123456789abcdef" not in text
    (tmp_path / "again.py").write_text(text)
    assert load_recipe(tmp_path / "again.py").to_dict() == {**recipe.to_dict(), "hub_token": "***"}


def test_several_processes(recipe: Config) -> None:
    lines = list(dry_run(recipe, Ranks(world_size=2, launcher="pytorch")))
    assert any(line.endswith("micro-batch(es) on each of 2 process(es)") for line in lines)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "zero9"}, "unknown strategy 'zero9'"),
        ({"param_scheduler": {"type": "LinearLR", "end": 3.0}}, r"param_scheduler\[0\]\.end=3\.0"),
        ({"optim_wrapper": {"optimizer": {"type": "AdamW", "lr": -1.0}}}, r"optim_wrapper\.optimizer: .*-1\.0"),
        ({"train_cfg": {"type": "xrlhf.engine.loops.GroupTrainLoop"}}, "either max_epochs or max_steps"),
    ],
)
def test_what_would_stop_a_run_stops_it(recipe: Config, change: dict[str, object], message: str) -> None:
    recipe.merge_from_dict(dict.fromkeys(change))
    for name, value in change.items():
        recipe[name] = value
    with pytest.raises(ConfigError, match=message):
        list(dry_run(recipe, Ranks()))


class Sized(nn.Module):
    """1000 weights in bfloat16, of which 100 more are trained in float32."""

    def __init__(self, precision: torch.dtype, config: SimpleNamespace) -> None:
        super().__init__()
        self.frozen = nn.Parameter(torch.zeros(900, dtype=torch.bfloat16), requires_grad=False)
        self.trained = nn.Parameter(torch.zeros(100))
        self.precision = precision
        self.layer = nn.Module()
        self.layer.gradient_checkpointing = False
        self.config = config

    @property
    def hf_model(self) -> nn.Module:
        return self


@pytest.mark.parametrize(
    ("sizes", "intermediate"),
    [({"intermediate_size": 20}, 20), ({"ffn_dim": 30}, 30), ({}, 40)],
)
def test_the_memory_of_a_model(sizes: dict[str, int], intermediate: int) -> None:
    """Weights 900 * 2 + 100 * 4; gradients 100 * 4; two float32 moments for each of 100.

    Per token and layer 10 hidden vectors of 10 and 3 of the intermediate size, 4 bytes each; 2 layers, 7 tokens.
    """
    model = Sized(torch.float32, SimpleNamespace(hidden_size=10, num_hidden_layers=2, **sizes))
    layer = (10 * 10 + 3 * intermediate) * 4
    expected = {"weights": 2200.0, "gradients": 400.0, "optimizer": 800.0, "activations": 7.0 * 2 * layer}
    assert estimate_memory(model, 7) == {**expected, "total": sum(expected.values())}


def test_half_precision_and_checkpointing_save_activations() -> None:
    """Under autocast a value takes 2 bytes; with checkpointing a layer keeps its input, and one layer all of it."""
    model = Sized(torch.bfloat16, SimpleNamespace(hidden_size=10, num_hidden_layers=2, intermediate_size=20))
    layer = (10 * 10 + 3 * 20) * 2
    assert estimate_memory(model, 7)["activations"] == 7.0 * 2 * layer
    model.layer.gradient_checkpointing = True
    assert estimate_memory(model, 7)["activations"] == 7.0 * (2 * 10 * 2 + layer)
