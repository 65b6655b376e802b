"""The server's page in a real browser: ranking, sentences, comparing, labelling, and labels that train a model."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CHATML, byte_tokenizer, tiny_backbone

from xrlhf.evaluation.scorer import Scorer
from xrlhf.export import save_reward_model
from xrlhf.models.reward_model import RewardModel
from xrlhf.structures import Group

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH"),
]

XRLHF = [sys.executable, "-m", "xrlhf.cli.main"]
PHONE = {"width": 360, "height": 740}
DESK = {"width": 1100, "height": 900}
PROMPT = "What is two plus three?"
ANSWERS = ["It is five. I am sure.", "No idea!", "Five"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "tiny_reward"
    torch.manual_seed(0)
    reward = RewardModel(tiny_backbone())
    torch.nn.init.normal_(reward.hf_model.score.weight, std=0.5)
    save_reward_model(reward, byte_tokenizer(CHATML), folder)
    return folder


@pytest.fixture(scope="module")
def address(model: Path, command_environment: dict[str, str]) -> Iterator[str]:
    """A server of the model, started as a user does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*XRLHF, "serve", str(model), "--port", str(port), "--device", "cpu"]
    with subprocess.Popen(command, env=command_environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as server:
        url = f"http://127.0.0.1:{port}/"
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"{url}ready", timeout=5):
                    break
            except OSError:
                assert server.poll() is None, server.stdout.read().decode()  # type: ignore[union-attr]
                time.sleep(0.1)
        else:
            pytest.fail("the server was not ready within a minute")
        yield url
        server.terminate()
        assert server.wait(30) == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, address: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """The page at the width that the test asks for, which fails a test if anything goes wrong in the browser."""
    size = getattr(request, "param", DESK)
    context = browser.new_context(viewport=size, accept_downloads=True)
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    opened.goto(address)
    yield opened
    folder = Path(os.environ.get("XRLHF_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    opened.screenshot(path=folder / f"{request.node.name}.png", full_page=True)
    context.close()
    assert wrong == []


def expected_scores(model: Path, prompt: str, answers: list[str]) -> list[float]:
    responses = tuple([{"role": "assistant", "content": answer}] for answer in answers)
    (scores,) = Scorer.from_pretrained(str(model)).score([Group([{"role": "user", "content": prompt}], responses)])
    assert isinstance(scores, list)
    return scores


@pytest.mark.parametrize("page", [DESK, PHONE], indirect=True, ids=["desk", "phone"])
def test_answers_are_ranked(page: Any, model: Path) -> None:
    page.get_by_label("Prompt").fill(PROMPT)
    page.get_by_role("button", name="Add an answer").click()
    for number, answer in enumerate(ANSWERS, 1):
        page.get_by_label(f"Answer {number}").fill(answer)
    page.get_by_role("button", name="Score", exact=True).click()
    page.get_by_text("3 answers, best first.").wait_for()
    scores = expected_scores(model, PROMPT, ANSWERS)
    order = sorted(range(3), key=lambda index: -scores[index])
    items = page.locator("#rank-results li")
    assert [items.nth(place).locator("pre").inner_text() for place in range(3)] == [ANSWERS[index] for index in order]
    shown = [float(items.nth(place).locator(".score").inner_text().split()[0]) for place in range(3)]
    assert shown == pytest.approx([scores[index] for index in order], abs=2e-4)
    # Nothing reaches beyond the window, whatever its width.
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_score_after_each_sentence(page: Any, model: Path) -> None:
    page.get_by_label("Prompt").fill(PROMPT)
    page.get_by_label("Answer 1").fill(ANSWERS[0])
    page.get_by_role("button", name="Score", exact=True).click()
    page.get_by_role("button", name="Score after each sentence").click()
    page.locator(".sentence").nth(1).wait_for()
    assert page.locator(".sentence").all_inner_texts() == ["It is five.", "I am sure."]
    scores = expected_scores(model, PROMPT, ["It is five. ", ANSWERS[0]])
    shown = [float(text.strip(" []")) for text in page.locator("#rank-results pre .soft").all_inner_texts()]
    assert shown == pytest.approx(scores, abs=1e-3)


def test_what_goes_wrong_is_said(page: Any) -> None:
    page.get_by_label("Prompt").fill(PROMPT)
    page.get_by_role("button", name="Score", exact=True).click()
    page.get_by_text("Write at least one answer.").wait_for()
    page.get_by_role("tab", name="Compare").click()
    page.get_by_label("First model", exact=True).fill('{"prompt": "a"}')
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_text("First model, line 1: expected prompt and response.").wait_for()


def said(answers: dict[str, str]) -> str:
    return "".join(json.dumps({"prompt": prompt, "response": answer}) + "\n" for prompt, answer in answers.items())


def test_two_models_are_compared(page: Any, model: Path) -> None:
    first = {PROMPT: ANSWERS[0], "Say hello.": "Hello!", "Who?": "Me."}
    second = {PROMPT: ANSWERS[1], "Say hello.": "No."}
    page.get_by_role("tab", name="Compare").click()
    page.get_by_label("First model", exact=True).fill(said(first))
    page.get_by_label("Second model", exact=True).fill(said(second))
    page.get_by_role("button", name="Compare", exact=True).click()
    status = page.get_by_text("1 answers have no partner and were left out.")
    status.wait_for()
    margins = [b - a for a, b in (expected_scores(model, prompt, [first[prompt], second[prompt]]) for prompt in second)]
    wins = sum(margin < 0 for margin in margins)
    assert f"Of 2 prompts the first model's answer scores higher in {wins}" in status.inner_text()
    shown = [float(text) for text in page.locator("#compare-results td:last-child").all_inner_texts()]
    assert shown == pytest.approx(sorted(margins, key=lambda margin: -abs(margin)), abs=2e-3)


def test_labels_made_with_the_keyboard_train_a_model(
    page: Any, model: Path, tmp_path: Path, command_environment: dict[str, str]
) -> None:
    rows = [
        {"prompt": f"Question {number}?", "chosen": f"Good answer {number}.", "rejected": f"Bad answer {number}."}
        for number in range(12)
    ]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    page.get_by_role("tab", name="Rank").focus()
    page.keyboard.press("ArrowLeft")
    assert page.get_by_role("tab", name="Label").get_attribute("aria-selected") == "true"
    page.get_by_label("Pairs, or the first model").set_input_files(pairs)
    page.get_by_role("button", name="Start").click()
    page.get_by_text("Pair 1 of 12").wait_for()
    sides = set()
    for number in range(10):
        left_is_good = "Good" in page.locator("#label-left").inner_text()
        sides.add(left_is_good)
        assert page.locator("#label-prompt").inner_text() == f"Question {number}?"
        page.keyboard.press("1" if left_is_good else "2")
    # A wrong one, taken back; then one of each other kind.
    page.keyboard.press("1")
    page.keyboard.press("u")
    page.get_by_text("Pair 11 of 12: 10 decided").wait_for()
    page.keyboard.press("0")
    page.keyboard.press("s")
    page.get_by_text("All 12 pairs are done: 10 decided, 1 equal, 1 skipped.").wait_for()
    good = sum(
        (a > b) + 0.5 * (a == b)
        for a, b in (expected_scores(model, row["prompt"], [row["chosen"], row["rejected"]]) for row in rows[:10])
    )
    page.get_by_text(f"You and the model agree in {good:g} of 10 pairs").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the labels").click()
    labels = tmp_path / download.value.suggested_filename
    download.value.save_as(labels)
    assert labels.name == "pairs_labels.jsonl"
    saved = [json.loads(line) for line in labels.read_text(encoding="utf-8").splitlines()]
    assert [row["chosen"][0]["content"] for row in saved] == [row["chosen"] for row in rows[:10]]
    assert [row["rejected"][0]["content"] for row in saved] == [row["rejected"] for row in rows[:10]]
    options = [f"data_path={labels}", "train_cfg.max_epochs=None", "train_cfg.max_steps=2"]
    result = subprocess.run(
        [*XRLHF, "train", "tiny_reward_own_data_cpu", "--work-dir", tmp_path / "run", "--cfg-options", *options],
        env=command_environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "run" / "iter_2.pth").is_file()
