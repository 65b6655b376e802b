"""Trains, exports and reloads a tiny model of every architecture, and writes the table of docs/architectures.md.

Example:

    python tools/architecture_table.py
"""

from __future__ import annotations

import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from tiny_models import (  # type: ignore[import-not-found]
    CHATML,
    byte_tokenizer,
    random_groups,
    scores_alone,
    tiny_backbone,
)

from xrlhf.data.packing import pack
from xrlhf.export import save_reward_model
from xrlhf.losses import RankingLoss
from xrlhf.models.reward_model import RewardModel
from xrlhf.models.tokenizer import prepare_tokenizer

PAGE = Path(__file__).resolve().parents[1] / "docs" / "architectures.md"
BEGIN, END = "<!-- written by tools/architecture_table.py -->", "<!-- end of the table -->"
HEADER = "| model type | layout | exported as | all weights | LoRA, merged | padding on the left |"
LARGEST_DIFFERENCE = 1e-5

ARCHITECTURES: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2")},
    **{name: {} for name in ("gemma3_text", "phi", "phi3", "gpt_oss", "smollm3", "stablelm", "starcoder2")},
    **{name: {} for name in ("opt", "gpt2", "gpt_neox", "bloom", "falcon", "gptj", "gpt_neo")},
    "mpt": {"max_seq_len": 512},
}
"""Model types, each with what its tiny config has beside that of tests/tiny_models.py."""


@dataclass(frozen=True)
class Row:
    """What was found of an architecture; differences are the largest of any score."""

    model_type: str
    layout: str
    exported_as: str
    difference: float
    lora_difference: float
    left_padding: str

    def __str__(self) -> str:
        cells = (self.model_type, self.layout, f"`{self.exported_as}`", f"{self.difference:.0e}")
        return f"| {' | '.join(cells)} | {self.lora_difference:.0e} | {self.left_padding} |"


def tokenizer_for_training() -> PreTrainedTokenizerBase:
    """Bytes, a template that writes BOS, and a reward token that is new."""
    tokenizer = byte_tokenizer("{{ bos_token }}" + CHATML, adds="<s> $A", bos_token="<s>")
    return prepare_tokenizer(tokenizer, ending="<|reward|>")


def train(model_type: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> RewardModel:
    """A reward model after two steps."""
    backbone = tiny_backbone(model_type, **ARCHITECTURES[model_type])
    model = RewardModel(backbone, tokenizer=tokenizer, loss=RankingLoss(), **options).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(2):
        model(pack(random_groups(seed=step))).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def export_and_compare(model: RewardModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> float:
    """The largest difference of a score between training and the exported model that transformers loads by itself."""
    groups = random_groups()
    batch = pack(groups)
    wanted = model.score(batch)
    save_reward_model(model, tokenizer, folder)
    loaded = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    return float((scores_alone(loaded, groups, batch) - wanted).abs().max())


@torch.no_grad()
def padded_on_the_left(model: PreTrainedModel) -> str:
    """Whether a batch padded on the left scores as its rows by themselves."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, 260, (length,), generator=generator) for length in (4, 9, 14)]
    ids = torch.stack([torch.cat([row.new_zeros(14 - len(row)), row]) for row in rows])
    alone = torch.stack([model(row[None]).logits[0, 0] for row in rows])
    together: Tensor = model(ids, attention_mask=(ids != 0).long()).logits[:, 0]
    return "same scores" if (together - alone).abs().max() < 1e-4 else "other scores"


def measure(model_type: str, folder: Path) -> Row:
    """Train, export and reload one architecture; the exports stay in ``folder``, as ``full`` and ``lora``."""
    tokenizer = tokenizer_for_training()
    full = train(model_type, tokenizer)
    difference = export_and_compare(full, tokenizer, folder / "full")
    lora_difference = export_and_compare(train(model_type, tokenizer, lora={"r": 4}), tokenizer, folder / "lora")
    loaded = AutoModelForSequenceClassification.from_pretrained(folder / "full").eval()
    return Row(model_type, full.layout, type(loaded).__name__, difference, lora_difference, padded_on_the_left(loaded))


def read_table() -> dict[str, Row]:
    """The rows of the page, by model type."""
    table = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    rows = {}
    for line in table.strip().splitlines()[2:]:
        name, layout, kind, difference, lora_difference, left = (cell.strip() for cell in line.strip("|").split("|"))
        rows[name] = Row(name, layout, kind.strip("`"), float(difference), float(lora_difference), left)
    return rows


def main() -> int:
    """Write the table; 1 if a score differs."""
    transformers.logging.set_verbosity_error()
    rows = []
    for model_type in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(model_type, Path(folder)))
        print(rows[-1], flush=True)
    text = PAGE.read_text(encoding="utf-8")
    table = "\n".join([BEGIN, "", HEADER, "|---|---|---|---|---|---|", *map(str, rows), "", END])
    PAGE.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: table, text, flags=re.DOTALL), encoding="utf-8")
    largest = max(max(row.difference, row.lora_difference) for row in rows)
    return 0 if largest < LARGEST_DIFFERENCE else 1


if __name__ == "__main__":
    sys.exit(main())
