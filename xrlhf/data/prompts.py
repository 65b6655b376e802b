"""Prompts to draw answers for, and which of them a rollout holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from xrlhf.data.dataset import check_source, fold_of, resolve_map_fn
from xrlhf.data.encoding import GroupEncoder, template_options
from xrlhf.data.plan import GroupStream
from xrlhf.data.reasons import Reason, RowError
from xrlhf.data.sources import RawRow, open_source
from xrlhf.data.table import LeftOut, TableReport, check_shares, map_row, prompt_key
from xrlhf.errors import ConfigError, DataError
from xrlhf.registry import DATASETS
from xrlhf.structures import Conversation, Group, as_ids

__all__ = ["EncodedPrompt", "PromptDataset", "PromptEvalLoader", "PromptLoader", "prompt_map_fn"]

_NO_LIMIT = 1 << 30
_CHUNK = 1024


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the policy reads it.

    Args:
        prompt: Messages that end with a question, or plain text.
        ids: (P,) int32, up to where the answer begins.
        meta: What else the row said.
        location: Where the row stands.
        dataset: Index of its source.
    """

    prompt: Conversation
    ids: np.ndarray
    meta: Mapping[str, Any] = field(default_factory=dict)
    location: str = ""
    dataset: int = 0


def prompt_map_fn(row: Mapping[str, Any], *, prompt: str = "prompt", system: str | None = None) -> Group:
    """A prompt alone, with the row's other columns for rewards that need them.

    Args:
        row: One row.
        prompt: The column that holds it: messages, or text, which becomes a message by the user.
        system: A system message to put in front.

    Raises:
        RowError: The column is missing, or holds neither.
    """
    value = row.get(prompt)
    if isinstance(value, str):
        messages = [{"role": "user", "content": value}]
    elif isinstance(value, list) and value and all(isinstance(message, Mapping) for message in value):
        messages = [dict(message) for message in value]
    else:
        reason = Reason.MISSING_COLUMN if value is None else Reason.WRONG_TYPE
        raise RowError(reason, f"column {prompt!r} holds no prompt; expected text, or a list of messages")
    if system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    return Group(messages, (), meta={name: item for name, item in row.items() if name != prompt})


@DATASETS.register_module()
class PromptDataset:
    """Prompts from one or several sources, held in memory.

    Any map function serves: of the groups that it makes the prompt is taken, and what the row says beside its answers
    (``meta``). :func:`prompt_map_fn` reads rows that are prompts.

    Args:
        sources: As in :class:`~xrlhf.data.dataset.GroupDataset`.
        tokenizer: The prepared tokenizer (the builder puts it in).
        max_length: Most tokens of a prompt; rows with longer ones are left out and counted.
        fold: As there.
        max_prompts: Keep only the first so many prompts of each source, at least 1.
        chat_template_kwargs: Options of the chat template.
        max_bad_share: As there.
        max_left_out_share: As there.

    Attributes:
        sizes: Number of prompts of each source.
        weights: Visits per prompt and epoch of each source.
        names: What reports call each source.

    Raises:
        DataError: A source is missing, bad or empty; an option is wrong.
    """

    def __init__(
        self,
        sources: Sequence[Mapping[str, Any]],
        *,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        fold: Mapping[str, Any] | None = None,
        max_prompts: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        max_bad_share: float = 0.02,
        max_left_out_share: float = 0.5,
    ) -> None:
        if not sources:
            raise DataError("a dataset needs at least one source")
        if max_prompts is not None and max_prompts < 1:
            raise DataError(f"max_prompts must be at least 1, got {max_prompts}")
        held = fold_of(fold) if fold else None
        self.max_length = max_length
        self.encoder = GroupEncoder(
            tokenizer,
            max_length=_NO_LIMIT,
            chat_template_kwargs={**(chat_template_kwargs or {}), "add_generation_prompt": True},
        )
        self.names: list[str] = []
        self.weights: list[float] = []
        self.sizes: list[int] = []
        self.reports: list[TableReport] = []
        self._prompts: list[EncodedPrompt] = []
        for number, spec in enumerate(sources):
            self.weights.append(check_source(spec, f"sources[{number}]"))
            source = open_source(spec["source"])
            report = TableReport()
            prompts, keys = self._read(source.rows(), resolve_map_fn(spec["map_fn"]), report, number)
            check_shares(report, source.name, max_bad_share, max_left_out_share)
            if held is not None:
                prompts = [prompts[int(index)] for index in held.select(np.array(keys, dtype=np.uint64))]
            prompts = prompts[:max_prompts]
            if not prompts:
                raise DataError(f"{source.name}: no prompt is left after fold={fold}")
            self._prompts += prompts
            self.names.append(str(spec.get("name") or source.name))
            self.sizes.append(len(prompts))
            self.reports.append(report)

    def _read(self, rows: Any, map_fn: Any, report: TableReport, dataset: int) -> tuple[list[EncodedPrompt], list[int]]:
        """What became of the rows of a source, and the key of each prompt that is left."""
        prompts: list[EncodedPrompt] = []
        keys: list[int] = []
        chunk: list[tuple[RawRow, Group]] = []

        def finish() -> None:
            found = self._encode([group for _, group in chunk])
            for (raw, group), ids in zip(chunk, found, strict=True):
                if not isinstance(ids, RowError) and len(ids) > self.max_length:
                    ids = RowError(Reason.TOO_LONG, f"{len(ids)} tokens, the limit is {self.max_length}")
                if isinstance(ids, RowError):
                    report.add(LeftOut(raw.location, ids.reason, ids.detail))
                    continue
                prompts.append(EncodedPrompt(group.prompt, ids, dict(group.meta), raw.location, dataset))
                keys.append(prompt_key(group))
            chunk.clear()

        for raw in rows:
            report.num_rows += 1
            found = map_row(raw, map_fn, needs_response=False)
            if isinstance(found, RowError):
                if found.group is None:
                    report.add(LeftOut(raw.location, found.reason, found.detail))
                    continue
                # Answers that teach no preference do not take the question away.
                found = found.group
            chunk.append((raw, found))
            if len(chunk) == _CHUNK:
                finish()
        finish()
        report.num_groups = len(prompts)
        return prompts, keys

    def _encode(self, groups: Sequence[Group]) -> list[np.ndarray | RowError]:
        """Ids of prompts up to where the answer begins."""
        of_messages = [group for group in groups if not isinstance(group.prompt, str)]
        found = iter(
            self.encoder.encode_conversations(
                [group.prompt for group in of_messages], [template_options(group) for group in of_messages]
            )
        )
        encoded = [
            self._encode_text(group.prompt) if isinstance(group.prompt, str) else next(found) for group in groups
        ]
        nothing = RowError(Reason.NO_PROMPT, "the prompt has no token")
        return [ids if isinstance(ids, RowError) or len(ids) else nothing for ids in encoded]

    def _encode_text(self, prompt: str) -> np.ndarray | RowError:
        try:
            return as_ids(self.encoder.tokenizer(prompt, verbose=False)["input_ids"])
        except (TypeError, UnicodeError) as error:
            return RowError(Reason.WRONG_TYPE, f"the text cannot be tokenised: {error}")

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> EncodedPrompt:
        return self._prompts[index]

    def where(self, index: int) -> str:
        """Which row of which source a prompt came from."""
        return self._prompts[index].location

    def num_tokens(self, indices: np.ndarray | None = None) -> np.ndarray:
        """Tokens of prompts, int64: of the whole set, or of those at ``indices``."""
        chosen = self._prompts if indices is None else [self._prompts[int(index)] for index in indices]
        return np.array([len(prompt.ids) for prompt in chosen], dtype=np.int64)

    def stream(self, seed: int, shuffle: bool = True) -> GroupStream:
        """The order in which training visits the prompts."""
        return GroupStream(self.sizes, self.weights, seed=seed, shuffle=shuffle)

    def report_lines(self) -> list[str]:
        """What became of the rows of every source."""
        lines: list[str] = []
        for name, report, size in zip(self.names, self.reports, self.sizes, strict=True):
            lines.extend(line.replace("rows became groups", "rows became prompts") for line in report.lines(name))
            if size != report.num_groups:
                lines.append(f"  of these, {size} prompts are in this split")
        return lines

    def report(self) -> dict[str, Any]:
        """The same counts as data, by source, with the tokens of the prompts."""
        lengths = np.split(self.num_tokens(), np.cumsum(self.sizes)[:-1])
        return {
            name: {**report.to_json(), "num_groups_used": len(of_source), "num_tokens": int(of_source.sum())}
            for name, report, of_source in zip(self.names, self.reports, lengths, strict=True)
        }


class PromptLoader:
    """The prompts of every rollout, by its number.

    Args:
        dataset: The prompts.
        prompts_per_rollout: Prompts of one rollout over all ranks.
        token_budget: Most tokens of one micro-batch, prompts and answers.
        seed: Seed of the order.
        shuffle: False visits the prompts in file order.
        rank: This process.
        world_size: All processes.
    """

    def __init__(
        self,
        dataset: PromptDataset,
        *,
        prompts_per_rollout: int,
        token_budget: int,
        seed: int,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if prompts_per_rollout < 1 or token_budget < 1:
            raise ConfigError(
                f"prompts_per_rollout and token_budget must be at least 1, got {prompts_per_rollout} and {token_budget}"
            )
        self.dataset = dataset
        self.prompts_per_rollout = prompts_per_rollout
        self.token_budget = token_budget
        self.rank = rank
        self.world_size = world_size
        self.stream = dataset.stream(seed, shuffle)

    @property
    def groups_per_step(self) -> int:
        """Prompts that are drawn from the data together."""
        return self.prompts_per_rollout

    def num_rollouts(self, max_epochs: float) -> int:
        """Rollouts of ``max_epochs`` passes over the prompts."""
        return math.ceil(round(self.stream.epoch_size * max_epochs) / self.prompts_per_rollout)

    def prompt_ids(self, rollout: int) -> np.ndarray:
        """Positions in the data set of the prompts of a rollout, whatever the number of ranks."""
        return self.stream(rollout * self.prompts_per_rollout, (rollout + 1) * self.prompts_per_rollout)


class PromptEvalLoader:
    """Every prompt of a set once; the ranks take turns.

    Args:
        dataset: The prompts.
        rank: This process.
        world_size: All processes.
    """

    def __init__(self, dataset: PromptDataset, *, rank: int = 0, world_size: int = 1) -> None:
        self.dataset = dataset
        self.prompt_ids = np.arange(rank, len(dataset), world_size)

    def __len__(self) -> int:
        return len(self.prompt_ids)
