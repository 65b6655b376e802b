"""Conversations in the terminal, with a respondent that says what the test tells it to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import byte_tokenizer, tiny_backbone, tiny_causal_lm

from xrlhf.cli.conversation import (
    Candidate,
    Conversation,
    Reply,
    Respondent,
    TerminalChat,
    notes_of,
    printable,
    score_lines,
)
from xrlhf.data.map_fns import messages_map_fn
from xrlhf.devices import find_device
from xrlhf.errors import ModelError, UserError
from xrlhf.evaluation.scorer import Scorer
from xrlhf.models.generation import Generator, Sampling
from xrlhf.structures import Group, Message


class Told:
    """Answers with what it was given, and remembers what it was asked."""

    def __init__(self, *replies: Reply | str | BaseException, num: int = 1, scorer: Any = None) -> None:
        self.replies = list(replies)
        self.asked: list[list[Message]] = []
        self.num = num
        self.scorer = scorer
        self.sampling = Sampling()

    def reply(self, messages: Sequence[Message], on_text: Callable[[str], None]) -> Reply:
        self.asked.append(list(messages))
        given = self.replies.pop(0)
        if isinstance(given, BaseException):
            raise given
        reply = Reply(Candidate(given), (Candidate(given),), "stop") if isinstance(given, str) else given
        on_text(reply.best.text)
        return reply


def typed(*lines: str | type[BaseException]) -> Callable[[str], str]:
    """Stands for :func:`input`: each line in turn, an exception where one is named, then Ctrl-D."""
    left: Iterator[str | type[BaseException]] = iter(lines)

    def read(prompt: str) -> str:
        line = next(left, EOFError)
        if isinstance(line, str):
            return line
        raise line

    return read


def chat(told: Told, *lines: str | type[BaseException], system: str | None = None, **options: Any) -> Conversation:
    conversation = Conversation(system)
    TerminalChat(told, conversation, read=typed(*lines), **options).run()  # type: ignore[arg-type]
    return conversation


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def bot(text: str) -> Message:
    return {"role": "assistant", "content": text}


def test_questions_and_answers(capsys: pytest.CaptureFixture[str]) -> None:
    told = Told("one", "two")
    conversation = chat(told, "first", "", "second", system="s")
    assert told.asked[1] == [{"role": "system", "content": "s"}, user("first"), bot("one"), user("second")]
    assert conversation.turns == [user("first"), bot("one"), user("second"), bot("two")]
    assert capsys.readouterr().out == "model> one\nmodel> two\n\n"


def test_leaving(capsys: pytest.CaptureFixture[str]) -> None:
    told = Told()
    chat(told, "/exit", "never read")
    assert not told.asked
    chat(told, KeyboardInterrupt, "/exit")
    assert "Ctrl-D or /exit leaves" in capsys.readouterr().out


def test_lines_that_go_on_and_lines_that_begin_with_a_slash() -> None:
    told = Told("a", "b")
    chat(told, "one\\", "two\\", "three", "//etc is a folder")
    assert [messages[-1]["content"] for messages in told.asked] == ["one\ntwo\nthree", "/etc is a folder"]


def test_reset_and_system() -> None:
    told = Told("a", "b", "c", "d")
    chat(told, "1", "/reset", "2", "/system be brief", "3", "/system", "4", system="s")
    system = {"role": "system", "content": "s"}
    brief = {"role": "system", "content": "be brief"}
    assert told.asked == [
        [system, user("1")],
        [system, user("2")],
        [brief, user("2"), bot("b"), user("3")],
        [user("2"), bot("b"), user("3"), bot("c"), user("4")],
    ]


def test_undo(capsys: pytest.CaptureFixture[str]) -> None:
    conversation = chat(Told("a", "b"), "1", "2", "/undo")
    assert conversation.turns == [user("1"), bot("a")]
    assert chat(Told("a"), "1", "/undo", "/undo").turns == []
    assert "there is nothing to take back" in capsys.readouterr().out


def test_what_is_saved_can_be_learnt_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "chats.jsonl"
    chat(Told("eins €", "zwei"), "1", "2", f"/save {file}", "/undo", f"/save {file}", system="s")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    groups = [messages_map_fn(row) for row in rows]
    system = {"role": "system", "content": "s"}
    assert groups[0] == Group([system, user("1"), bot("eins €"), user("2")], ([bot("zwei")],))
    assert groups[1] == Group([system, user("1")], ([bot("eins €")],))
    assert capsys.readouterr().out.count(f"added to {file}") == 2


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["/save"], "error: /save needs the name of a file"),
        (["/save x.jsonl"], "error: nothing to save yet: ask something first"),
        (["1", "/save /no/such/folder/x"], "error: /no/such/folder/x cannot be written: No such file or directory"),
        (["/undoo"], "error: there is no command /undoo: /help lists them, and //... says what begins with /"),
        (["/scores"], "error: there are no scores: name a reward model with --reward when you start"),
    ],
)
def test_commands_that_cannot_be_carried_out(
    lines: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "40")
    chat(Told("a"), *lines)
    assert message in capsys.readouterr().out.splitlines()
    assert not list(tmp_path.iterdir())


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    chat(Told(), "/help")
    text = capsys.readouterr().out
    for command in ("/help", "/reset", "/system TEXT", "/undo", "/scores", "/save FILE", "/exit", "Ctrl-C", "Ctrl-D"):
        assert command in text


def test_an_error_leaves_the_conversation_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    conversation = chat(Told("a", ModelError("the question is too long"), "b"), "1", "2", "3")
    assert conversation.turns == [user("1"), bot("a"), user("3"), bot("b")]
    assert "error: the question is too long" in capsys.readouterr().out


def test_a_stopped_answer_is_kept_and_one_that_said_nothing_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    half = Reply(Candidate("ha"), (Candidate("ha"),), "interrupted")
    none = Reply(Candidate(" "), (Candidate(" "),), "interrupted")
    conversation = chat(Told(half, none), "1", "2")
    assert conversation.turns == [user("1"), bot("ha")]
    text = capsys.readouterr().out
    assert "stopped; what was said is kept" in text
    assert "stopped before anything was said; the question is taken back" in text


def test_ctrl_c_while_answers_are_scored(capsys: pytest.CaptureFixture[str]) -> None:
    conversation = chat(Told("a", KeyboardInterrupt(), "b"), "1", "2", "3")
    assert conversation.turns == [user("1"), bot("a"), user("3"), bot("b")]
    assert "stopped; the question is taken back" in capsys.readouterr().out


def test_scores_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    candidates = (Candidate("low", -1.0), Candidate("none", None, "too long"), Candidate("high", 2.5))
    reply = Reply(candidates[2], candidates, "stop")
    lines = ["+2.5000  answer 3: high", "-1.0000  answer 1: low", "no score (too long)  answer 2: none"]
    assert score_lines(reply) == lines
    chat(Told(reply, num=3, scorer=object()), "/scores", "1", "/scores")
    text = capsys.readouterr().out.splitlines()
    assert "error: there are no scores yet: ask something first" in text
    assert "score +2.5000" in text
    assert text[-4:-1] == lines
    chat(Told(reply, num=3, scorer=object()), "1", show_scores=True)
    assert capsys.readouterr().out.splitlines()[-4:-1] == lines


def test_notes() -> None:
    unscored = Candidate("a", None, "too long")
    assert notes_of(Reply(unscored, (unscored,), "length", num_left_out=2), 7) == [
        "the 2 oldest messages no longer fit into the model and were left out",
        "cut off after 7 tokens, or where the model's own limit is: see --max-new-tokens",
        "no answer could be scored: too long",
    ]
    assert notes_of(Reply(Candidate("a"), (Candidate("a"),), "stop"), 7) == []


def test_a_terminal_is_not_commanded_by_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert printable("a\x1b[31mb\x07\n\tc€") == "a\ufffd[31mb\ufffd\n\tc€"
    conversation = chat(Told("\x1b[31m[bold]x"), "1")
    assert "model> \ufffd[31m[bold]x" in capsys.readouterr().out
    assert conversation.turns[-1]["content"] == "\x1b[31m[bold]x"


def test_a_conversation_without_turns_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to save yet"):
        Conversation("s").save(tmp_path / "x")
    assert not (tmp_path / "x").exists()


# -------------------------------------------------------------------------------------- real tiny models


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    from xrlhf.models.reward_model import RewardModel
    from xrlhf.models.tokenizer import prepare_tokenizer

    backbone = tiny_backbone(seed=7, vocab_size=260)
    return Scorer(RewardModel(backbone).eval(), prepare_tokenizer(byte_tokenizer()), find_device("cpu"))


def respondent(scorer: Scorer | None = None, **options: Any) -> Respondent:
    generator = Generator(tiny_causal_lm(vocab_size=260), byte_tokenizer())
    return Respondent(generator, Sampling(max_new_tokens=8), find_device("cpu"), scorer=scorer, **options)


def test_the_best_of_several(scorer: Scorer) -> None:
    """Its score is the highest, and every score is that of the whole conversation in a batch of its own."""
    messages = [user("1 + 1?")]
    heard: list[str] = []
    reply = respondent(scorer, num=5, seed=3).reply(messages, heard.append)
    assert len({candidate.text for candidate in reply.candidates}) > 1
    scores = [scorer.score([Group(messages, ([bot(c.text)],))])[0] for c in reply.candidates]
    torch.testing.assert_close([[c.score] for c in reply.candidates], scores, rtol=1e-5, atol=1e-5)
    assert reply.best.score == max(candidate.score or 0.0 for candidate in reply.candidates)
    assert heard == [reply.best.text]


def test_a_seed_gives_the_same_conversation_again() -> None:
    def two(seed: int | None) -> list[str]:
        someone = respondent(seed=seed)
        return [someone.reply([user("hi")], lambda _: None).best.text for _ in range(2)]

    assert two(1) == two(1)
    assert two(1) != two(2)
    assert two(1)[0] != two(1)[1]


def test_one_answer_is_heard_as_it_comes(scorer: Scorer) -> None:
    heard: list[str] = []
    reply = respondent(scorer, seed=1).reply([user("hi")], heard.append)
    assert "".join(heard) == reply.best.text
    assert len(heard) > 1
    assert reply.best.score is not None


def test_answers_that_the_reward_model_cannot_read(scorer: Scorer) -> None:
    short = Scorer(scorer.model, scorer.encoder.tokenizer, scorer.device, max_length=5)
    reply = respondent(short, num=2, seed=1).reply([user("hi")], lambda _: None)
    assert reply.best == reply.candidates[0]
    assert reply.best.score is None
    assert "the limit is 5" in notes_of(reply, 8)[-1]
