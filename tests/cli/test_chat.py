"""``xrlhf chat`` through the real command line: once, through a pipe, and in a terminal of its own."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import CHATML, byte_tokenizer, tiny_backbone, tiny_causal_lm

from xrlhf.cli.main import main
from xrlhf.data.map_fns import messages_map_fn
from xrlhf.models.causal_lm import causal_lm_from_pretrained
from xrlhf.models.generation import Generator, Sampling

Run = Callable[..., subprocess.CompletedProcess[str]]

QUESTION = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model (``policy``), a reward model (``reward``), a base without a template (``base``), its adapter, a
    base of another size (``wide``), and a model that says "a" for ever (``endless``)."""
    folder = tmp_path_factory.mktemp("models")
    for name, template in (("policy", CHATML), ("base", None)):
        tiny_causal_lm(vocab_size=260).save_pretrained(folder / name)
        byte_tokenizer(template).save_pretrained(folder / name)
    tiny_backbone(seed=7, vocab_size=260).save_pretrained(folder / "reward")
    byte_tokenizer().save_pretrained(folder / "reward")
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(causal_lm_from_pretrained(str(folder / "base")), config)
    model.save_pretrained(str(folder / "adapter"))
    byte_tokenizer("{% for m in messages %}<s>{{ m['content'] }}<|im_end|>{% endfor %}").save_pretrained(
        folder / "adapter"
    )
    endless = tiny_causal_lm("phi", vocab_size=260, max_position_embeddings=32000)
    with torch.no_grad():
        endless.lm_head.weight.zero_()
        endless.lm_head.bias.zero_()
        endless.lm_head.bias[byte_tokenizer()("a")["input_ids"][0]] = 100.0
    endless.save_pretrained(folder / "endless")
    byte_tokenizer().save_pretrained(folder / "endless")
    tiny_causal_lm(hidden_size=64, vocab_size=260).save_pretrained(folder / "wide")
    byte_tokenizer().save_pretrained(folder / "wide")
    return folder


def greedy_answer(model: Any, tokenizer: Any, tokens: int = 8) -> str:
    generator = Generator(model, tokenizer)
    return generator.answer(generator.fit(QUESTION, tokens), Sampling(max_new_tokens=tokens, greedy=True))[0].text


# -------------------------------------------------------------------------------------------- one question


def test_one_question(models: Path, xrlhf: Run) -> None:
    """The answer is all that goes to the output; what there is to say goes to the error stream."""
    result = xrlhf("chat", models / "policy", "--prompt", "Hello", "--greedy", "--max-new-tokens", "8")
    wanted = greedy_answer(causal_lm_from_pretrained(str(models / "policy")), byte_tokenizer())
    assert (result.returncode, result.stdout) == (0, wanted + "\n")
    assert result.stderr == "cut off after 8 tokens, or where the model's own limit is: see --max-new-tokens\n"


def test_a_question_from_a_pipe(models: Path, xrlhf: Run) -> None:
    once = xrlhf("chat", models / "policy", "--prompt", "Hello\nyou", "--seed", "5", "--max-new-tokens", "8")
    piped = xrlhf("chat", models / "policy", "--seed", "5", "--max-new-tokens", "8", input="Hello\nyou\n")
    assert (piped.returncode, once.returncode) == (0, 0)
    assert piped.stdout == once.stdout
    other = xrlhf("chat", models / "policy", "--seed", "6", "--max-new-tokens", "8", input="Hello\nyou\n")
    assert other.stdout != once.stdout


def test_the_adapters_own_template_is_used(models: Path, xrlhf: Run) -> None:
    """The base has none; the adapter alone names its base, and gives the same answers."""
    options = ("--prompt", "Hello", "--greedy", "--max-new-tokens", "8")
    result = xrlhf("chat", models / "base", "--adapter", models / "adapter", *options)
    tokenizer = byte_tokenizer("{% for m in messages %}<s>{{ m['content'] }}<|im_end|>{% endfor %}")
    wanted = greedy_answer(causal_lm_from_pretrained(str(models / "adapter")), tokenizer)
    assert (result.returncode, result.stdout) == (0, wanted + "\n"), result.stderr
    assert xrlhf("chat", models / "adapter", *options).stdout == result.stdout


def test_the_best_of_several_with_its_scores(models: Path, xrlhf: Run) -> None:
    options = ("--prompt", "Hello", "--seed", "1", "--max-new-tokens", "8", "--reward", models / "reward")
    result = xrlhf("chat", models / "policy", *options, "--best-of", "4", "--scores")
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stderr.splitlines() if "  answer " in line]
    scores = [float(line.split()[0]) for line in lines]
    assert len(scores) == 4
    assert scores == sorted(scores, reverse=True)
    assert lines[0].partition(": ")[2] == " ".join(result.stdout.split())


def test_a_template_by_name(models: Path, xrlhf: Run) -> None:
    options = ("--prompt", "Hello", "--greedy", "--max-new-tokens", "4")
    result = xrlhf("chat", models / "base", "--chat-template", "chatml", *options)
    assert (result.returncode, len(result.stdout) > 1) == (0, True), result.stderr


# -------------------------------------------------------------------------------- what a user can mend


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["base"], "has no chat template, as base models often have none: name a model that was trained to chat, or"),
        (["reward"], "is a reward model or another classifier (LlamaForSequenceClassification), not a language model"),
        (["wide", "--adapter", "{adapter}"], "is for another base than"),
        (["policy", "--adapter", "{policy}"], "holds no adapter: there is no adapter_config.json"),
        (["no-such-owner/no-such-model"], "the hub (huggingface) cannot be reached and the cache does not hold it"),
        (["/no/such/folder"], "there is no such directory"),
        (["policy", "--reward", "{policy}"], "it is a language model, not a reward model"),
        (["policy", "--best-of", "4"], "--best-of needs a reward model: name it with --reward"),
        (["policy", "--scores"], "--scores needs a reward model: name it with --reward"),
        (["policy", "--reward", "{reward}", "--best-of", "4", "--greedy"], "--best-of needs answers that differ"),
        (["policy", "--temperature", "0"], "temperature must be above 0, got 0"),
        (["policy", "--dtype", "int8"], "dtype must be 'float32', 'bfloat16' or 'float16'"),
        (["policy", "--device", "quantum"], "quantum"),
        (["policy", "--chat-template", "/no/file"], "chat_template '/no/file' is neither a file nor a Jinja template"),
        (["policy", "--best-of", "x"], "Invalid value for '--best-of'"),
        (["policy", "--prompt", " "], "there is no question: give one with --prompt or through the pipe"),
        (["policy", "--prompt", "x" * 600], "tokens, and the model reads at most 512 with its answer"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str],
    message: str,
    models: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(models / "cache"))
    name, *rest = [a.format(**{n: models / n for n in ("adapter", "policy", "reward")}) for a in arguments]
    model = str(models / name) if (models / name).is_dir() else name
    given = ["chat", model, *rest, *([] if "--prompt" in rest else ["--prompt", "Hello"])]
    status = main(given)
    captured = capsys.readouterr()
    assert (status, captured.out) == (2, "")
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    assert message in lines[0]


# ---------------------------------------------------------------------------------------------- a terminal


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, folder: Path, environment: dict[str, str], *arguments: str | Path) -> None:
        self.screen = ""
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "xrlhf.cli.main", *map(str, arguments)],
            cwd=folder,
            env={**environment, "TERM": "dumb"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            # Ctrl-C is meant for who has the terminal, which is this command.
            preexec_fn=_take_terminal,
        )
        os.close(theirs)

    def type_until(self, keys: str, text: str) -> str:
        """Type again and again until ``text`` comes: an interrupt between a prompt and its reading waits for a key."""
        for _ in range(60):
            self.type(keys)
            with contextlib.suppress(AssertionError):
                return self.wait_for(text, seconds=5)
        raise AssertionError(f"{text!r} did not come")

    def wait_for(self, text: str, seconds: float = 300.0) -> str:
        """What came until ``text`` did."""
        end = time.monotonic() + seconds
        while text not in self.screen:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._ours], [], [], left)[0]:
                raise AssertionError(f"{text!r} did not come; the screen shows {self.screen!r}")
            try:
                piece = os.read(self._ours, 4096)
            except OSError:
                piece = b""
            if not piece:
                raise AssertionError(f"ended before {text!r} came; the screen shows {self.screen!r}")
            self.screen += piece.decode("utf-8", errors="replace")
        seen, _, self.screen = self.screen.partition(text)
        return seen + text

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def leave(self) -> int:
        """The exit status once the command ends."""
        end = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < end:
            if select.select([self._ours], [], [], 0.1)[0]:
                try:
                    self.screen += os.read(self._ours, 4096).decode("utf-8", errors="replace")
                except OSError:
                    break
        return self.process.wait(timeout=10)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        os.close(self._ours)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # As a shell does for it: what a script put into the background ignores Ctrl-C, and hands that on.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def terminal(tmp_path: Path, command_environment: dict[str, str]) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*arguments: str | Path) -> Terminal:
        opened.append(Terminal(tmp_path, command_environment, *arguments))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_a_conversation_in_a_terminal(models: Path, terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    shown = terminal("chat", models / "policy", "--max-new-tokens", "8", "--seed", "1", "--system", "s")
    shown.wait_for("/help lists the commands, Ctrl-D leaves")
    shown.wait_for("you> ")
    shown.type("Hello\n")
    shown.wait_for("model> ")
    shown.wait_for("you> ")
    shown.type("/save chats.jsonl\n")
    shown.wait_for("added to chats.jsonl")
    shown.wait_for("you> ")
    shown.type("\x04")
    assert shown.leave() == 0
    (row,) = [json.loads(line) for line in (tmp_path / "chats.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
    assert messages_map_fn(row, empty="keep").prompt[-1] == {"role": "user", "content": "Hello"}  # type: ignore[comparison-overlap]


def test_ctrl_c_in_a_terminal(models: Path, terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    """It stops an answer that would not end, and what was said is kept; without an answer to stop it does nothing."""
    shown = terminal("chat", models / "endless", "--max-new-tokens", "16000")
    shown.wait_for("you> ")
    shown.type("Hello\n")
    shown.wait_for("model> aaa")
    shown.type("\x03")
    shown.wait_for("stopped; what was said is kept")
    shown.wait_for("you> ")
    shown.type_until("\x03", "Ctrl-D or /exit leaves")
    shown.wait_for("you> ")
    shown.type("/save it.jsonl\n")
    shown.wait_for("added to it.jsonl")
    shown.type("/exit\n")
    assert shown.leave() == 0
    row = json.loads((tmp_path / "it.jsonl").read_text(encoding="utf-8"))
    said = row["messages"][-1]["content"]
    assert 3 <= len(said) < 16000
    assert set(said) == {"a"}
