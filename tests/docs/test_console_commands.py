"""Commands fenced as ``console`` run in this process, on tiny models under the names that the pages give them.

They stand as they are shown, but for what makes them short: fewer steps, fewer tokens. What cannot be run here is in
``shown_commands.NOT_RUN`` with the reason; ``test_commands`` checks of it, as of all others, what can be checked.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from shown_commands import NOT_RUN, console_commands, reason_not_to_run
from tiny_models import CHATML, byte_tokenizer, tiny_backbone, tiny_causal_lm
from transformers import AutoTokenizer

from xrlhf.cli.main import main
from xrlhf.models import causal_lm_from_pretrained

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("package_logger")]

RUN = [(page, line) for page, line in console_commands() if reason_not_to_run(page, line) is None]

FEW = ["default_hooks.curves=None", "default_hooks.throughput=None"]
FEW_STEPS = ["train_cfg.max_epochs=None", "train_cfg.max_steps=2", "groups_per_step=2", *FEW]
FEW_ROLLOUTS = ["max_rollouts=1", "prompts_per_rollout=2", "num_answers=2", "max_new_tokens=8", *FEW]
FEW_ROWS = [f"{name}_dataloader.dataset.sources.0.source.num_groups=20" for name in ("train", "val")]
SHORTER: dict[str, list[str]] = {
    "xrlhf chat": ["--max-new-tokens", "8"],
    "xrlhf generate": ["--max-new-tokens", "8"],
    "xrlhf train tiny_reward_cpu": [*FEW_STEPS, *FEW_ROWS],
    "xrlhf train tiny_reward_own_data_cpu": FEW_STEPS,
    "xrlhf train tiny_sft_cpu": [*FEW_STEPS, *FEW_ROWS],
    "xrlhf train tiny_dpo_cpu": [*FEW_STEPS, *FEW_ROWS],
    "xrlhf train tiny_grpo_cpu": [*FEW_ROLLOUTS, *FEW_ROWS],
}
"""What is put behind a command, by its beginning."""

BEFORE = {
    "evaluation.md": [f"xrlhf eval model_{name} --data pairs.jsonl --out reports/{name}" for name in "ab"],
}
"""What has to be there before the commands of a page, and is made by none of them."""

QUESTIONS = [{"prompt": text} for text in ("What is 2 + 2?", "Say hello.", "Name a river.")]
SEVERAL = [{**row, "responses": ["Four.", "Hello!", "No.", "Why?", "The Rhine."]} for row in QUESTIONS]
PAIRS = [{**row, "chosen": "Four, hello, the Rhine.", "rejected": "No."} for row in QUESTIONS]


def messages(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


ROWS: dict[str, list[dict[str, Any]]] = {
    "questions.jsonl": QUESTIONS,
    "samples.jsonl": SEVERAL,
    "answers.jsonl": [{"text": f"{row['prompt']} No idea."} for row in QUESTIONS],
    "strong_answers.jsonl": [{**row, "response": "The Rhine, of course."} for row in QUESTIONS],
    "pairs_labels.jsonl": PAIRS * 20,
    "PandaLM.json": [
        {
            **{"instruction": "Add.", "input": "2 + 2", "response1": "4", "response2": "5"},
            **{f"annotator{number}": 1 for number in (1, 2, 3)},
        }
    ],
    "safe.jsonl": [
        {
            **{"prompt": "Hello?", "response_0": "Hello!", "response_1": "No."},
            **{"better_response_id": 0, "safer_response_id": 0},
        }
    ],
    "pairs.jsonl": [
        {
            **{"prompt": "Hello?", "chosen": messages("Hello?", "Hello!"), "rejected": messages("Hello?", "No.")},
            **{"score_chosen": 8.0, "score_rejected": 2.0},
        }
    ]
    * 4,
}
"""Files that the commands name."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_parts: Path) -> Path:
    """Models and adapters under the names of the pages."""
    folder = tmp_path_factory.mktemp("shown")
    for number, name in enumerate(("my_policy", "weak_model", "base_model")):
        tiny_causal_lm(seed=number, vocab_size=260).save_pretrained(folder / name)
        byte_tokenizer(None if name == "base_model" else CHATML).save_pretrained(folder / name)
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    get_peft_model(causal_lm_from_pretrained(str(folder / "base_model")), config).save_pretrained(
        str(folder / "my_adapter")
    )
    byte_tokenizer().save_pretrained(folder / "my_adapter")
    for number, name in enumerate(("my_reward_model", "model_a", "model_b", "REWARD_MODEL")):
        tiny_backbone(seed=number, vocab_size=260).save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)
    tiny_backbone(vocab_size=32).save_pretrained(folder / "BASE")
    AutoTokenizer.from_pretrained(tiny_parts / "tokenizer").save_pretrained(folder / "BASE")
    return folder


@pytest.fixture(scope="module")
def finished(models: Path, tmp_path_factory: pytest.TempPathFactory, tiny_recipe_in: Callable[..., Path]) -> Path:
    """A folder with a recipe (``RECIPE``, ``my_recipe.py``) and its run (``work_dirs/NAME``, ``A``, ``B``)."""
    folder = tmp_path_factory.mktemp("finished")
    base = (
        "from xrlhf.models import backbone_from_pretrained\n"
        f"model = dict(model, backbone=dict(type=backbone_from_pretrained, path={str(models / 'BASE')!r}))\n"
        'work_dir = "work_dirs/my_recipe"'
    )
    recipe = tiny_recipe_in(folder, "my_recipe", extra=base)
    run = folder / "work_dirs" / "my_recipe"
    assert main(["train", str(recipe), "--work-dir", str(run)]) == 0
    as_called(run, "500")
    for name in ("NAME", "A", "B"):
        shutil.copytree(run, folder / "work_dirs" / name)
    return folder


def as_called(run: Path, step: str) -> None:
    """Give the last checkpoint of a short run the number that a page has."""
    last = run / (run / "last_checkpoint").read_text(encoding="utf-8")
    for suffix in ("", ".json"):
        target = run / f"iter_{step}.pth{suffix}"
        if not target.exists():
            shutil.copy(f"{last}{suffix}", target)


def shown_numbers() -> dict[str, str]:
    """The step that a page names of the checkpoints of a run, by the run."""
    text = "\n".join(line for _, line in RUN)
    return dict(re.findall(r"work_dirs/(\w+)/iter_(\d+)\.pth", text))


@pytest.mark.parametrize("page", dict.fromkeys(page for page, _ in RUN))
def test_commands_run(page: str, models: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of a page, one after the other, ends with status 0."""
    shown = [line for of, line in RUN if of == page]
    for model in models.iterdir():
        (tmp_path / model.name).symlink_to(model)
    for name, rows in ROWS.items():
        if any(f"--out {name}" in line for line in shown):
            continue
        text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name).write_text(text, encoding="utf-8")
    shutil.copytree(finished / "work_dirs", tmp_path / "work_dirs")
    shutil.copy(finished / "my_recipe.py", tmp_path / "my_recipe.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XRLHF_CACHE", str(tmp_path / "cache"))
    for line in [*BEFORE.get(page, ()), *shown]:
        run(line)


def run(line: str) -> None:
    words = shlex.split(line)
    assert words[0] == "xrlhf", f"{line!r}: run it, or say in NOT_RUN why not"
    arguments = ["my_recipe.py" if word == "RECIPE" else word for word in words[1:]]
    behind = next(
        (more for beginning, more in SHORTER.items() if line.startswith(beginning + " ") or line == beginning), []
    )
    if arguments[0] == "chat" and "--prompt" not in arguments:
        behind = ["--prompt", "Hello", *behind]
    for out in made_anew(arguments):
        out.unlink() if out.is_symlink() else shutil.rmtree(out, ignore_errors=True)
    assert main([*arguments, *behind]) == 0, line
    if arguments[0] == "train" and (step := shown_numbers().get(arguments[1])):
        as_called(Path("work_dirs") / arguments[1], step)


def made_anew(arguments: Sequence[str]) -> list[Path]:
    """Directories that a command of the page before it has written already: `convert` overwrites none."""
    places = {("convert", "pth_to_hf"): 4, ("convert", "merge"): 4, ("convert", "split"): 3}
    place = places.get((arguments[0], arguments[1] if len(arguments) > 1 else ""))
    return [] if place is None else [Path(arguments[place])]


def test_every_reason_is_of_a_command() -> None:
    """What nobody shows any more needs no reason."""
    used = {reason_not_to_run(page, line) for page, line in console_commands()}
    assert set(NOT_RUN) <= used
