"""A conversation in the terminal: what was said, the commands that change it, and who answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from xrlhf.errors import UserError

if TYPE_CHECKING:
    from xrlhf.devices import Device
    from xrlhf.evaluation.scorer import Scorer
    from xrlhf.models.generation import Generator, Sampling
    from xrlhf.structures import Message

__all__ = [
    "Candidate",
    "Conversation",
    "Reply",
    "Respondent",
    "TerminalChat",
    "notes_of",
    "printable",
    "score_lines",
]

HELP = """\
/help         this list
/reset        forget the conversation; the system text stays
/system TEXT  another system text from the next answer on; without TEXT, none
/undo         take the last question and its answer back
/scores       the scores of the last answers (with --reward)
/save FILE    add the conversation to FILE as a line of JSON, which messages_map_fn reads
/exit         leave; Ctrl-D does too
A line that ends with \\ goes on in the next one. //TEXT says TEXT with one slash. Ctrl-C stops an answer."""


@dataclass
class Conversation:
    """What was said so far.

    Args:
        system: The system text, or None.
        turns: Messages by the user and the assistant, in turns.
    """

    system: str | None = None
    turns: list[Message] = field(default_factory=list)

    @property
    def messages(self) -> list[Message]:
        """All of it, the system text first."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.turns]

    def ask(self, question: str) -> list[Message]:
        """All of it with a question at its end, which stays only once it is answered."""
        return [*self.messages, {"role": "user", "content": question}]

    def add(self, question: str, answer: str) -> None:
        """Add a question and what was answered."""
        self.turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def undo(self) -> bool:
        """Take the last question and its answer back; False where there is none."""
        if not self.turns:
            return False
        del self.turns[-2:]
        return True

    def save(self, file: Path) -> None:
        """Add the conversation to ``file`` as one line of JSON.

        Raises:
            UserError: Nothing was said yet, or the file cannot be written.
        """
        if not self.turns:
            raise UserError("nothing to save yet: ask something first")
        line = json.dumps({"messages": self.messages}, ensure_ascii=False)
        try:
            with file.open("a", encoding="utf-8") as out:
                out.write(line + "\n")
        except OSError as error:
            raise UserError(f"{file} cannot be written: {error.strerror}") from error


@dataclass(frozen=True)
class Candidate:
    """One answer.

    Args:
        text: What it says.
        score: What the reward model gives it; None without one, or where it cannot be scored.
        obstacle: Why it cannot be scored; empty otherwise.
    """

    text: str
    score: float | None = None
    obstacle: str = ""


@dataclass(frozen=True)
class Reply:
    """What came of a question.

    Args:
        best: The answer that counts.
        candidates: All answers that were sampled.
        ending: How the best one ended, as in :class:`~xrlhf.models.generation.Answer`.
        num_left_out: Messages at the beginning of the conversation that the model did not see.
    """

    best: Candidate
    candidates: tuple[Candidate, ...]
    ending: Literal["stop", "length", "interrupted"]
    num_left_out: int = 0


@dataclass
class Respondent:
    """Who answers: a language model, and perhaps a reward model that chooses among its answers.

    Args:
        generator: The language model.
        sampling: How its answers are drawn.
        num: Answers to each question, of which the best counts.
        scorer: The reward model; None for the one answer as it is.
        device: What both are on.
        seed: Answers are the same for the same seed, question and number of answers before; None for any.
    """

    generator: Generator
    sampling: Sampling
    device: Device
    num: int = 1
    scorer: Scorer | None = None
    seed: int | None = None
    num_replies: int = 0

    def reply(self, messages: Sequence[Message], on_text: Callable[[str], None]) -> Reply:
        """Answer a conversation.

        Args:
            messages: It ends with a question.
            on_text: Called with each piece of the answer as it comes; once with the best where there are several.

        Raises:
            ModelError: The conversation is too long, or the chat template refuses it.
        """
        prompt = self.generator.fit(messages, self.sampling.max_new_tokens)
        if self.seed is not None:
            self.device.seed_all((self.seed + self.num_replies) % 2**63)
        self.num_replies += 1
        answers = self.generator.answer(prompt, self.sampling, num=self.num, on_text=on_text if self.num == 1 else None)
        candidates = self._scored(messages, [answer.text for answer in answers])
        best = max(range(len(candidates)), key=lambda index: _worth(candidates[index]))
        if self.num > 1:
            on_text(candidates[best].text)
        return Reply(candidates[best], tuple(candidates), answers[best].ending, prompt.num_left_out)

    def _scored(self, messages: Sequence[Message], texts: list[str]) -> list[Candidate]:
        from xrlhf.data.reasons import RowError
        from xrlhf.structures import Group

        if self.scorer is None:
            return [Candidate(text) for text in texts]
        groups = [Group(list(messages), ([{"role": "assistant", "content": text}],)) for text in texts]
        return [
            Candidate(text, obstacle=found.detail) if isinstance(found, RowError) else Candidate(text, found[0])
            for text, found in zip(texts, self.scorer.score(groups), strict=True)
        ]


def _worth(candidate: Candidate) -> float:
    return float("-inf") if candidate.score is None else candidate.score


def score_lines(reply: Reply) -> list[str]:
    """The scores of all answers, one a line, the best first; equal ones in the order in which they were sampled."""
    order = sorted(range(len(reply.candidates)), key=lambda index: -_worth(reply.candidates[index]))
    lines = []
    for index in order:
        candidate = reply.candidates[index]
        score = f"{candidate.score:+.4f}" if candidate.score is not None else f"no score ({candidate.obstacle})"
        start = " ".join(candidate.text.split())
        lines.append(f"{score}  answer {index + 1}: {start[:60]}{'...' if len(start) > 60 else ''}")
    return lines


def notes_of(reply: Reply, max_new_tokens: int) -> list[str]:
    """What a reader of an answer has to know about it."""
    notes = []
    if reply.num_left_out:
        notes.append(f"the {reply.num_left_out} oldest messages no longer fit into the model and were left out")
    if reply.ending == "length":
        notes.append(f"cut off after {max_new_tokens} tokens, or where the model's own limit is: see --max-new-tokens")
    if reply.ending == "interrupted":
        notes.append("stopped; what was said is kept")
    if reply.best.score is None and reply.best.obstacle:
        notes.append(f"no answer could be scored: {reply.best.obstacle}")
    return notes


def printable(text: str) -> str:
    """``text`` without characters that a terminal would obey."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)


class TerminalChat:
    """Asks, answers and obeys commands until it is left.

    Args:
        respondent: Who answers.
        conversation: Where it begins.
        show_scores: Print the scores of all answers behind each one.
        read: Reads a line behind a prompt, as :func:`input` does.
    """

    def __init__(
        self,
        respondent: Respondent,
        conversation: Conversation,
        *,
        show_scores: bool = False,
        read: Callable[[str], str] = input,
    ) -> None:
        from rich.console import Console

        self.respondent = respondent
        self.conversation = conversation
        self.show_scores = show_scores
        self._read = read
        self._console = Console(highlight=False)
        self._last: Reply | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: self._say(HELP),
            "/reset": self._reset,
            "/system": self._set_system,
            "/undo": self._undo,
            "/scores": self._show_scores,
            "/save": self._save,
        }

    def run(self) -> None:
        """Until /exit or Ctrl-D."""
        while True:
            try:
                line = self._question()
            except KeyboardInterrupt:
                self._console.print()
                self._say("Ctrl-D or /exit leaves")
                continue
            except EOFError:
                self._console.print()
                return
            if line == "/exit":
                return
            if not line:
                continue
            try:
                self.take(line)
            except UserError as error:
                self._say(f"error: {error}")
            except KeyboardInterrupt:
                # Before the first token, or while answers were scored.
                self._console.print()
                self._say("stopped; the question is taken back")

    def take(self, line: str) -> None:
        """Obey a command, or answer what was said.

        Raises:
            UserError: The command or the question cannot be carried out; nothing has changed.
        """
        if line.startswith("/") and not line.startswith("//"):
            name, _, rest = line.partition(" ")
            if name not in self._commands:
                raise UserError(f"there is no command {name}: /help lists them, and //... says what begins with /")
            self._commands[name](rest.strip())
            return
        self._answer(line.removeprefix("/") if line.startswith("//") else line)

    def _question(self) -> str:
        lines = [self._read("you> ")]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(self._read("...> "))
        return "\n".join(lines).strip()

    def _answer(self, question: str) -> None:
        self._console.print("model> ", style="bold", end="")
        if self.respondent.num > 1:
            self._say(f"sampling {self.respondent.num} answers ...")
        try:
            reply = self.respondent.reply(self.conversation.ask(question), self._print_piece)
        except UserError:
            self._console.print()
            raise
        self._console.print()
        self._last = reply
        if reply.ending == "interrupted" and not reply.best.text.strip():
            self._say("stopped before anything was said; the question is taken back")
            return
        self.conversation.add(question, reply.best.text)
        for note in notes_of(reply, self.respondent.sampling.max_new_tokens):
            self._say(note)
        if self.show_scores:
            self._show_scores("")
        elif reply.best.score is not None:
            self._say(f"score {reply.best.score:+.4f}")

    def _print_piece(self, text: str) -> None:
        self._console.out(printable(text), end="", highlight=False)

    def _say(self, text: str) -> None:
        """Print a line of the program's own, which is no part of the conversation."""
        self._console.print(printable(text), style="dim", markup=False, soft_wrap=True)

    def _reset(self, rest: str) -> None:
        self.conversation.turns.clear()
        self._say("the conversation is forgotten")

    def _set_system(self, rest: str) -> None:
        self.conversation.system = rest or None
        self._say("the system text is set" if rest else "there is no system text any more")

    def _undo(self, rest: str) -> None:
        self._say("taken back" if self.conversation.undo() else "there is nothing to take back")

    def _show_scores(self, rest: str) -> None:
        if self.respondent.scorer is None:
            raise UserError("there are no scores: name a reward model with --reward when you start")
        if self._last is None:
            raise UserError("there are no scores yet: ask something first")
        for line in score_lines(self._last):
            self._say(line)

    def _save(self, rest: str) -> None:
        if not rest:
            raise UserError("/save needs the name of a file")
        file = Path(rest).expanduser()
        self.conversation.save(file)
        self._say(f"added to {file}")
