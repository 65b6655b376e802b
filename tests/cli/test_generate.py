"""``xrlhf generate`` through the real command line."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import CHATML, byte_tokenizer, tiny_backbone, tiny_causal_lm

from xrlhf.cli.main import main
from xrlhf.devices import CpuDevice
from xrlhf.evaluation.scorer import Scorer
from xrlhf.models.causal_lm import causal_lm_from_pretrained
from xrlhf.models.generation import Generator, Sampling
from xrlhf.structures import Group

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model (``policy``), its adapter, one without a template (``base``), and a reward model."""
    folder = tmp_path_factory.mktemp("models")
    for name, template in (("policy", CHATML), ("base", None)):
        tiny_causal_lm(vocab_size=260).save_pretrained(folder / name)
        byte_tokenizer(template).save_pretrained(folder / name)
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(causal_lm_from_pretrained(str(folder / "policy")), config).save_pretrained(str(folder / "adapter"))
    tiny_backbone(seed=7, vocab_size=260).save_pretrained(folder / "reward")
    byte_tokenizer().save_pretrained(folder / "reward")
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"What is {i}?", "response": f"It is {i}."} for i in range(6)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_greedy_answers_are_those_of_chat(models: Path, prompts: Path, tmp_path: Path, xrlhf: Run) -> None:
    out = tmp_path / "out.jsonl"
    result = xrlhf(
        *("generate", models / "policy", "--prompts", prompts, "--out", out, "--greedy", "--max-new-tokens", "8")
    )
    assert (result.returncode, result.stdout) == (0, f"wrote {out}: 6 rows\n"), result.stderr
    generator = Generator(causal_lm_from_pretrained(str(models / "policy")), byte_tokenizer())
    for i, row in enumerate(lines(out)):
        messages = [{"role": "user", "content": f"What is {i}?"}]
        (answer,) = generator.answer(generator.fit(messages, 8), Sampling(max_new_tokens=8, greedy=True))
        assert row["response"] == answer.text
        assert row["prompt"] == messages


def test_the_same_call_goes_on(models: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    call = ["generate", str(models / "policy"), "--prompts", str(prompts), "--k", "2", "--max-new-tokens", "6"]
    assert main([*call, "--out", str(whole)]) == 0
    assert main([*call, "--out", str(out), "--max-prompts", "2"]) == 0
    assert main([*call, "--out", str(out), "--batch-prompts", "3"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {out}: 6 rows, 2 of them before"
    assert out.read_bytes() == whole.read_bytes()
    assert all(len(row["responses"]) == 2 for row in lines(out))
    assert main([*call, "--out", str(out), "--seed", "1"]) == 2
    assert "was begun with seed=0, and now it is 1" in capsys.readouterr().err


def test_an_adapter_changes_the_answers(models: Path, prompts: Path, tmp_path: Path) -> None:
    call = ["generate", str(models / "policy"), "--prompts", str(prompts), "--max-new-tokens", "6"]
    assert main([*call, "--out", str(tmp_path / "a.jsonl")]) == 0
    assert main([*call, "--out", str(tmp_path / "b.jsonl"), "--adapter", str(models / "adapter")]) == 0
    assert [r["response"] for r in lines(tmp_path / "a.jsonl")] != [r["response"] for r in lines(tmp_path / "b.jsonl")]


def test_plain_text(models: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A base model goes on with the prompt as it stands; without --plain it has no template to ask in."""
    out = tmp_path / "out.jsonl"
    call = ["generate", str(models / "base"), "--prompts", str(prompts), "--out", str(out), "--max-new-tokens", "6"]
    assert main(call) == 2
    assert "has no chat template" in capsys.readouterr().err
    assert main([*call, "--plain"]) == 0
    assert lines(out)[0]["prompt"] == "What is 0?"


def test_pairs_from_stronger_answers(models: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    call = ["generate", str(models / "policy"), "--rejected-for", str(prompts), "--out", str(out)]
    assert main([*call, "--max-new-tokens", "6"]) == 0
    rows = lines(out)
    assert [row["chosen"] for row in rows] == [f"It is {row['index']}." for row in rows]
    assert all(row["rejected"].strip() for row in rows)


def test_ranked_by_a_reward_model(models: Path, prompts: Path, tmp_path: Path) -> None:
    """The ratings are the reward model's scores of these conversations, falling."""
    call = ["generate", str(models / "policy"), "--prompts", str(prompts), "--max-new-tokens", "6", "--k", "4"]
    rank = ["--rank-by", str(models / "reward")]
    assert main([*call, *rank, "--out", str(tmp_path / "ranked.jsonl")]) == 0
    assert main([*call, *rank, "--pairs", "--out", str(tmp_path / "pairs.jsonl")]) == 0
    scorer = Scorer.from_pretrained(str(models / "reward"), device=CpuDevice())
    for row, pair in zip(lines(tmp_path / "ranked.jsonl"), lines(tmp_path / "pairs.jsonl"), strict=True):
        responses = tuple([{"role": "assistant", "content": text}] for text in row["responses"])
        (scores,) = scorer.score([Group(row["prompt"], responses)])
        assert row["ratings"] == pytest.approx(scores, abs=1e-5)
        assert row["ratings"] == sorted(row["ratings"], reverse=True)
        assert (pair["chosen"], pair["rejected"]) == (row["responses"][0], row["responses"][-1])
        assert pair["margin"] == pytest.approx(row["ratings"][0] - row["ratings"][-1], abs=1e-5)


def test_rows_that_are_left_out(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n{"title": "b"}\n' + json.dumps({"prompt": "x" * 600}) + "\n", encoding="utf-8")
    call = ["generate", str(models / "policy"), "--prompts", str(file), "--max-new-tokens", "4"]
    assert main([*call, "--out", str(tmp_path / "out.jsonl")]) == 2
    assert "prompts.jsonl:2: found title; expected one of: prompt; messages;" in capsys.readouterr().err
    assert main([*call, "--out", str(tmp_path / "out.jsonl"), "--skip-bad"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith("prompts left out: 1 (missing-column), 1 (too-long); the first is ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "prompts come from --prompts or from --rejected-for, and neither is given"),
        (["--prompts", "a", "--rejected-for", "b"], "--prompts or from --rejected-for, and both are given"),
        (["--rejected-for", "a", "--rank-by", "r"], "leave --rank-by out"),
        (["--rejected-for", "a", "--k", "2"], "--rejected-for takes one answer to each prompt, got --k 2"),
        (["--prompts", "a", "--rank-by", "r"], "--rank-by needs two or more answers to each prompt: give --k"),
        (["--prompts", "a", "--pairs"], "--pairs needs a reward model: name it with --rank-by"),
        (["--prompts", "a", "--greedy", "--k", "2"], "2 greedy answers would all be the same"),
        (["--prompts", "a", "--server-model", "m"], "--server-model needs a server"),
        (["--prompts", "a", "--server", "http://a", "--adapter", "b"], "--adapter is merged in this process"),
        (["--prompts", "a", "--temperature", "0"], "temperature must be above 0, got 0"),
        (["--prompts", "no_such_file.jsonl"], "no_such_file.jsonl"),
        (["--prompts", "a", "--k", "0"], "--k"),
    ],
)
def test_what_is_refused(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """One line and status 2, before any model is looked for; nothing is written."""
    assert main(["generate", "no_such_model", "--out", str(tmp_path / "out.jsonl"), *options]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_vllm_server(models: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Over real HTTP; where no server answers, the run fails with status 1."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert body["model"] == "policy-name"
            ids = byte_tokenizer()("Hi")["input_ids"]
            choice = {"token_ids": [*ids, 2], "logprobs": {"token_logprobs": [-1.0] * 3}, "finish_reason": "stop"}
            data = json.dumps({"choices": [{**choice, "index": i} for i in range(body["n"])]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    call = ["generate", str(models / "policy"), "--prompts", str(prompts), "--k", "2", "--server-model", "policy-name"]
    try:
        assert main([*call, "--server", url, "--out", str(tmp_path / "out.jsonl")]) == 0
    finally:
        server.shutdown()
        server.server_close()
    assert [row["responses"] for row in lines(tmp_path / "out.jsonl")] == [["Hi", "Hi"]] * 6
