"""Exported InternLM2 policies: with their code beside them, and in the layout of Llama."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import byte_tokenizer, tiny_causal_lm
from torch import Tensor
from transformers import AutoModelForCausalLM

from xrlhf.errors import ModelError
from xrlhf.export.card import ModelCard
from xrlhf.export.directory import loading_call
from xrlhf.export.internlm2 import as_llama, with_architecture
from xrlhf.export.policy import write_policy

IDS = [[7, 30, 12, 5, 99, 41]]
OPTIONS: dict[str, Any] = {"dtype": "float32", "max_shard_size": "5GB", "card": ModelCard("policy")}
SCRIPT = """
import json, sys
from transformers import AutoModelForCausalLM
import torch
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
with torch.no_grad():
    logits = model(input_ids=torch.tensor(json.loads(sys.argv[2])), use_cache=False).logits
    written = model.generate(torch.tensor(json.loads(sys.argv[2])), max_new_tokens=5, do_sample=False)
imported = [name for name in sys.modules if name.split(".")[0] == "xrlhf"]
print(json.dumps({"class": type(model).__name__, "logits": logits.tolist(), "written": written.tolist(),
                  "imported": imported}))
"""


@torch.no_grad()
def logits_of(model: torch.nn.Module) -> Tensor:
    return model.eval()(input_ids=torch.tensor(IDS), use_cache=False).logits


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_reads_it_without_this_package(tied: bool, tmp_path: Path) -> None:
    model = tiny_causal_lm("internlm2", tie_word_embeddings=tied)
    write_policy(model, byte_tokenizer(), tmp_path / "out", **OPTIONS)
    assert loading_call(tmp_path / "out").startswith("AutoModelForCausalLM.from_pretrained(")
    assert loading_call(tmp_path / "out").endswith("trust_remote_code=True)")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "out"), json.dumps(IDS)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    got = json.loads(done.stdout.splitlines()[-1])
    assert got["class"] == "InternLM2ForCausalLM"
    assert got["imported"] == []
    torch.testing.assert_close(torch.tensor(got["logits"]), logits_of(model), rtol=1e-5, atol=1e-5)
    assert got["written"] == model.generate(torch.tensor(IDS), max_new_tokens=5, do_sample=False).tolist()


@pytest.mark.parametrize("tied", [False, True])
def test_as_llama_it_needs_no_code(tied: bool, tmp_path: Path) -> None:
    model = tiny_causal_lm("internlm2", tie_word_embeddings=tied, rope_theta=5000)
    llama = with_architecture(model, "LlamaForCausalLM")
    write_policy(llama, byte_tokenizer(), tmp_path / "out", **OPTIONS)
    assert not list((tmp_path / "out").glob("*.py"))
    assert loading_call(tmp_path / "out") == f"AutoModelForCausalLM.from_pretrained({str(tmp_path / 'out')!r})"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(loaded).__name__ == "LlamaForCausalLM"
    torch.testing.assert_close(logits_of(loaded), logits_of(model), rtol=1e-5, atol=1e-5)


def test_settings_of_generation_are_kept() -> None:
    model = tiny_causal_lm("internlm2")
    model.generation_config.temperature = 0.8
    assert as_llama(model).generation_config.temperature == 0.8


def test_other_architectures_are_refused() -> None:
    with pytest.raises(ModelError, match="must be InternLM2ForCausalLM or LlamaForCausalLM for this model, got 'Gpt'"):
        with_architecture(tiny_causal_lm("internlm2"), "Gpt")
    with pytest.raises(ModelError, match="must be LlamaForCausalLM for this model, got 'InternLM2ForCausalLM'"):
        with_architecture(tiny_causal_lm("llama"), "InternLM2ForCausalLM")
