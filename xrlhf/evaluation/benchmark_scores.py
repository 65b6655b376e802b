"""What one model says about the rows of a benchmark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from xrlhf.data.prefetch import prefetch
from xrlhf.data.reasons import RowError
from xrlhf.errors import DataError
from xrlhf.evaluation.benchmark_data import BenchmarkData, LeftOut
from xrlhf.evaluation.benchmarks import BenchmarkRow, ScoredRow
from xrlhf.evaluation.scorer import Scorer
from xrlhf.progress import progress_bar
from xrlhf.structures import Conversation, TokenizedGroup

__all__ = ["BenchmarkScores", "Example", "score_benchmark"]

_CHUNK_ROWS = 1024
_MOST_CHARACTERS = 700
_TAIL_CHARACTERS = 200


@dataclass(frozen=True)
class Example:
    """A pair that the model and the data disagree about most, with its texts cut to a readable length.

    Args:
        location: File and line.
        subset: Part of the benchmark.
        margin: Score of the better answer minus score of the worse one.
        chosen_score: Score of the better answer.
        rejected_score: Score of the worse one.
        prompt: Text of the prompt.
        chosen: Text of the better answer.
        rejected: Text of the worse one.
    """

    location: str
    subset: str
    margin: float
    chosen_score: float
    rejected_score: float
    prompt: str
    chosen: str
    rejected: str


@dataclass
class BenchmarkScores:
    """Scores of one model on one benchmark.

    Args:
        rows: Those that have scores, in order.
        left_out: Those that have none, rows that could not be read included.
        num_at_limit: Rows whose longest conversation reaches the length limit where longer ones are cut: they were cut,
            or just fit.
        examples: The worst disagreements, the worst first.
    """

    rows: list[ScoredRow] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    num_at_limit: int = 0
    examples: list[Example] = field(default_factory=list)


def score_benchmark(
    scorer: Scorer, data: BenchmarkData, *, skip_bad: bool = False, num_examples: int = 10
) -> BenchmarkScores:
    """Score all rows of a benchmark.

    Args:
        scorer: The model.
        data: The rows.
        skip_bad: Leave out and name a row that cannot be encoded, rather than stop. Rows over the length limit are
            left out and named in any case.
        num_examples: How many disagreements to keep, one a row at most.

    Raises:
        DataError: A row cannot be encoded, or none could be scored.
        ModelError: A score is not finite.
    """
    result = BenchmarkScores(left_out=list(data.left_out))
    scored: list[BenchmarkRow] = []
    chunks = [data.rows[start : start + _CHUNK_ROWS] for start in range(0, len(data.rows), _CHUNK_ROWS)]
    with progress_bar(data.benchmark.title, len(data.rows), "row") as bar:
        for chunk, encoded, lengths in prefetch((_encode(scorer, chunk) for chunk in chunks), ahead=1):
            for row, tokens, scores, of_row in zip(chunk, encoded, scorer.score_encoded(encoded), lengths, strict=True):
                if isinstance(scores, RowError):
                    if scores.reason.bad and not skip_bad:
                        raise DataError(
                            f"{row.location}: {scores.detail}; --skip-bad leaves such rows out and names them"
                        )
                    result.left_out.append(LeftOut.of(row.location, scores))
                    continue
                result.num_at_limit += scorer.encoder.truncation != "drop" and _reaches(scorer, tokens)
                result.rows.append(row.scored(_alike(row, scores), of_row))
                scored.append(row)
            bar.update(len(chunk))
    if not result.rows:
        first = result.left_out[0]
        raise DataError(
            f"{first.location}: {first.detail} (no row of {data.benchmark.title} could be scored; --max-length and "
            "--truncation decide what happens to long ones)"
        )
    result.examples = _examples(scored, result.rows, num_examples)
    return result


def _alike(row: BenchmarkRow, scores: list[float]) -> list[float]:
    """Equal answers get the score of the first: they have it but for rounding, which must not decide a tie."""
    answers = row.group.responses
    return [scores[answers.index(answer)] for answer in answers]


def _encode(
    scorer: Scorer, rows: list[BenchmarkRow]
) -> tuple[list[BenchmarkRow], list[TokenizedGroup | RowError], list[list[int]]]:
    """Rows, their tokens, and the length of every answer."""
    encoded = scorer.encode([row.group for row in rows])
    return rows, encoded, _answer_lengths(scorer.encoder.tokenizer, rows)


def _answer_lengths(tokenizer: PreTrainedTokenizerBase, rows: Sequence[BenchmarkRow]) -> list[list[int]]:
    """Tokens of each answer's own text, without the template and before anything is cut."""
    texts = [readable(answer) for row in rows for answer in row.group.responses]
    # A text that cannot be tokenised cannot be encoded either, and its row is left out with that reason.
    try:
        counted = [len(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]
    except (TypeError, UnicodeError):
        counted = [len(text.split()) for text in texts]
    lengths: Iterator[int] = iter(counted)
    return [[next(lengths) for _ in row.group.responses] for row in rows]


def _reaches(scorer: Scorer, tokens: TokenizedGroup | RowError) -> bool:
    if isinstance(tokens, RowError):
        return False
    longest = len(tokens.prompt_ids) + max(len(ids) for ids in tokens.response_ids)
    return longest >= scorer.encoder.max_length


def _examples(rows: Sequence[BenchmarkRow], scored: Sequence[ScoredRow], num_examples: int) -> list[Example]:
    worst: list[tuple[float, int, int, int]] = []
    for place, row in enumerate(scored):
        of_row = [(row.scores[i] - row.scores[j], place, i, j) for i, j in row.pairs()]
        if of_row and min(of_row)[0] < 0:
            worst.append(min(of_row))
    return [
        Example(
            location=scored[place].location,
            subset=scored[place].subset,
            margin=margin,
            chosen_score=scored[place].scores[better],
            rejected_score=scored[place].scores[worse],
            prompt=cut(readable(rows[place].group.prompt)),
            chosen=cut(readable(rows[place].group.responses[better])),
            rejected=cut(readable(rows[place].group.responses[worse])),
        )
        for margin, place, better, worse in sorted(worst)[:num_examples]
    ]


def readable(conversation: Conversation) -> str:
    """A conversation as text: one message as it is, several with their roles before them."""
    if isinstance(conversation, str):
        return conversation
    if len(conversation) == 1:
        return str(conversation[0]["content"])
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in conversation)


def cut(text: str) -> str:
    """A long text with its middle left out, and how much that is."""
    if len(text) <= _MOST_CHARACTERS:
        return text
    head = _MOST_CHARACTERS - _TAIL_CHARACTERS
    left_out = len(text) - _MOST_CHARACTERS
    return f"{text[:head]}\n[... {left_out:,} characters left out ...]\n{text[-_TAIL_CHARACTERS:]}"
