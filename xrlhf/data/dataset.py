"""A training or evaluation set: one or several tables, weighted, and split into folds by prompt."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from xrlhf.config.resolve import resolve
from xrlhf.data.encoding import GroupEncoder, TargetRule, Truncation
from xrlhf.data.permutation import derive_key
from xrlhf.data.plan import GroupStream
from xrlhf.data.sources import open_source
from xrlhf.data.table import GroupTable, MapFn, build_table
from xrlhf.errors import ConfigError, DataError
from xrlhf.registry import DATASETS, MAP_FNS
from xrlhf.structures import TokenizedGroup

__all__ = ["Fold", "GroupDataset", "check_source", "fold_of", "resolve_map_fn"]


def resolve_map_fn(spec: Any) -> MapFn:
    """A map function from a recipe: a function, its dotted or registered name, or a dict with options.

    Args:
        spec: ``hh_map_fn``, ``"hh_map_fn"``, ``"my_package.my_map_fn"`` or ``dict(type=hh_map_fn, empty="keep")``. An
            option called ``map_fn`` is itself a map function, written in any of these ways.

    Raises:
        ConfigError: Nothing has that name, it is no function, or it does not take these options.
    """
    if not isinstance(spec, Mapping):
        function = _find_map_fn(spec)
        _check_options(spec, function, {})
        return function
    if "type" not in spec:
        raise ConfigError(f"a map_fn with options needs 'type', the function; found {', '.join(map(str, spec))}")
    options = {key: value for key, value in spec.items() if key != "type"}
    function = _find_map_fn(spec["type"])
    _check_options(spec["type"], function, options)
    if "map_fn" in options:
        options["map_fn"] = resolve_map_fn(options["map_fn"])
    return partial(function, **options)


def _check_options(spec: Any, function: MapFn, options: Mapping[str, Any]) -> None:
    """Raises ConfigError unless a row and ``options`` are all that the function needs."""
    name = getattr(function, "__name__", spec)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    missing = [
        option.name
        for option in signature.parameters.values()
        if option.kind is option.KEYWORD_ONLY and option.default is option.empty and option.name not in options
    ]
    if missing:
        given = "".join(f", {option}=..." for option in missing)
        raise ConfigError(
            f"map_fn {name} has no default for {' and '.join(missing)}: write dict(type={name}{given}); "
            f"`xrlhf list-dataset-formats {name}` says what it may be"
        )
    try:
        signature.bind({}, **options)
    except TypeError as error:
        raise ConfigError(f"map_fn {spec!r}: {error}") from error


def _find_map_fn(spec: Any) -> MapFn:
    if isinstance(spec, str) and "." not in spec:
        MAP_FNS.import_from_location()
        if spec not in MAP_FNS.module_dict:
            known = ", ".join(sorted(MAP_FNS.module_dict))
            raise ConfigError(f"no map function is called {spec!r}; known are {known}, or give a dotted name")
        spec = MAP_FNS.module_dict[spec]
    found = resolve(spec)
    if not callable(found):
        raise ConfigError(f"map_fn {spec!r} is not a function")
    return cast(MapFn, found)


@dataclass(frozen=True)
class Fold:
    """A split by prompt: every group of a prompt falls on the same side.

    Args:
        index: Which fold is held out, 0 to ``count - 1``.
        count: Number of folds.
        part: ``"train"`` keeps all but the fold, ``"held_out"`` the fold alone.
        seed: Another seed deals the prompts to folds in another way.
    """

    index: int
    count: int
    part: Literal["train", "held_out"]
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 2 or not 0 <= self.index < self.count:
            raise DataError(f"fold {self.index} of {self.count}: need at least 2 folds and an index below their number")
        if self.part not in ("train", "held_out"):
            raise DataError(f"part of a fold must be 'train' or 'held_out', got {self.part!r}")

    def select(self, prompt_keys: np.ndarray) -> np.ndarray:
        """Indices of the groups in this part, int64, in order."""
        salted = prompt_keys ^ np.uint64(derive_key("fold", self.seed))
        # A second mixing: the salt alone would leave the low bits' pattern in place.
        salted = (salted ^ (salted >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15)
        fold = (salted >> np.uint64(32)) % np.uint64(self.count)
        held_out = fold == self.index
        return np.nonzero(held_out if self.part == "held_out" else ~held_out)[0]


def fold_of(options: Mapping[str, Any]) -> Fold:
    """The fold that a recipe asks for.

    Raises:
        DataError: It lacks an option, or has one that does not exist.
    """
    try:
        return Fold(**options)
    except TypeError:
        found = ", ".join(map(str, options))
        raise DataError(f"fold takes index, count and part, and optionally seed; found {found}") from None


def check_source(spec: Any, where: str) -> float:
    """The weight of a source that a recipe names, once its keys are known to be right."""
    found = sorted(map(str, spec)) if isinstance(spec, Mapping) else type(spec).__name__
    if not isinstance(spec, Mapping) or not {"source", "map_fn"} <= set(spec) <= {"source", "map_fn", "weight", "name"}:
        raise DataError(f"{where} needs 'source' and 'map_fn' and may have 'weight' and 'name', got {found}")
    weight = spec.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
        raise DataError(f"{where}: weight must be a number above 0 (visits of each group per epoch), got {weight!r}")
    return float(weight)


@DATASETS.register_module()
class GroupDataset:
    """Groups from one or several sources.

    Args:
        sources: One dict per source: ``source`` (a path, a list of paths, or a dict that names a source class),
            ``map_fn``, and optionally ``weight`` (visits of each group per epoch, 1 by default) and ``name``.
        tokenizer: The prepared tokenizer (the builder puts it in).
        max_length: Most tokens of one conversation.
        truncation: ``"drop"``, ``"prompt"`` or ``"end"``; see :class:`GroupEncoder`.
        fold: ``dict(index=, count=, part=)`` to train on all folds but one, or evaluate on that one.
        max_groups: Keep only the first so many groups of each source, for a quick look; at least 1. All rows are
            tokenised even so.
        cache_dir: Where tables are kept.
        num_workers: Processes that tokenise; chosen by the size of the data if None.
        max_bad_share: Largest share of rows without the format before the run stops.
        max_left_out_share: Largest share of rows left out for any reason before the run stops.
        chat_template_kwargs: Options of the chat template.
        attributes: Names of the attributes to read, in this order, for a model with an attribute head; rows that have
            none of them are left out and counted.
        targets: Which tokens a policy learns to write: ``"answer"``, ``"assistant"`` or ``"all"``, see
            :class:`GroupEncoder`; None where nothing is learnt token by token.

    Attributes:
        reference_logps: For each group (K,) float32, what a reference gives its responses; None until it is attached.

    Raises:
        DataError: A source is missing, bad or empty; an option is wrong.
    """

    def __init__(
        self,
        sources: Sequence[Mapping[str, Any]],
        *,
        tokenizer: Any,
        max_length: int,
        truncation: Truncation = "drop",
        fold: Mapping[str, Any] | None = None,
        max_groups: int | None = None,
        cache_dir: str | None = None,
        num_workers: int | None = None,
        max_bad_share: float = 0.02,
        max_left_out_share: float = 0.5,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        attributes: Sequence[str] = (),
        targets: TargetRule | None = None,
    ) -> None:
        if not sources:
            raise DataError("a dataset needs at least one source")
        if max_groups is not None and max_groups < 1:
            raise DataError(f"max_groups must be at least 1, got {max_groups}")
        held = fold_of(fold) if fold else None
        self.encoder = GroupEncoder(
            tokenizer,
            max_length=max_length,
            truncation=truncation,
            chat_template_kwargs=dict(chat_template_kwargs or {}),
            attributes=attributes,
            targets=targets,
        )
        self.names: list[str] = []
        self.tables: list[GroupTable] = []
        self.weights: list[float] = []
        self._selected: list[np.ndarray | None] = []
        for number, spec in enumerate(sources):
            weight = check_source(spec, f"sources[{number}]")
            cache = Path(cache_dir).expanduser() if cache_dir else None
            table = build_table(
                open_source(spec["source"]),
                resolve_map_fn(spec["map_fn"]),
                self.encoder,
                cache_dir=cache,
                num_workers=num_workers,
                max_bad_share=max_bad_share,
                max_left_out_share=max_left_out_share,
            )
            table.dataset = number
            selected = held.select(table.prompt_keys) if held else None
            if max_groups is not None:
                selected = np.arange(min(max_groups, len(table))) if selected is None else selected[:max_groups]
            if selected is not None and not len(selected):
                raise DataError(f"{table.source_name}: no group is left after fold={fold} and max_groups={max_groups}")
            self.names.append(self._unique_name(spec.get("name") or table.source_name))
            self.tables.append(table)
            self.weights.append(weight)
            self._selected.append(selected)
        self.sizes = [len(t) if s is None else len(s) for t, s in zip(self.tables, self._selected, strict=True)]
        self._ends = np.cumsum(self.sizes)
        self.reference_logps: Sequence[np.ndarray] | None = None

    def _unique_name(self, name: str) -> str:
        if name not in self.names:
            return name
        return next(candidate for i in range(2, 10_000) if (candidate := f"{name}_{i}") not in self.names)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"group {index} of a dataset of {len(self)}")
        dataset = int(np.searchsorted(self._ends, index, side="right"))
        local = index - (int(self._ends[dataset - 1]) if dataset else 0)
        selected = self._selected[dataset]
        return dataset, local if selected is None else int(selected[local])

    def __getitem__(self, index: int) -> TokenizedGroup:
        dataset, local = self._locate(index)
        group = self.tables[dataset][local]
        return group if self.reference_logps is None else replace(group, reference_logps=self.reference_logps[index])

    def identity(self) -> str:
        """Digest of which groups the set holds, in which order."""
        digest = hashlib.blake2b(digest_size=16)
        for table, selected in zip(self.tables, self._selected, strict=True):
            digest.update(table.folder.name.encode())
            digest.update(b"all" if selected is None else np.asarray(selected, dtype=np.int64).tobytes())
        return digest.hexdigest()

    def where(self, index: int) -> str:
        """Which row of which source a group came from, counted from 0."""
        dataset, local = self._locate(index)
        return f"{self.names[dataset]} row {self.tables[dataset][local].row}"

    def num_tokens(self, indices: np.ndarray | None = None) -> np.ndarray:
        """Tokens that groups cost, int64: of the whole set, or of those at ``indices``."""
        if indices is None:
            return np.concatenate(
                [table.num_tokens(selected) for table, selected in zip(self.tables, self._selected, strict=True)]
            )
        return self._of_groups(indices, GroupTable.num_tokens)

    def num_targets(self, indices: np.ndarray) -> np.ndarray:
        """Target tokens of the groups at ``indices``, int64."""
        return self._of_groups(indices, GroupTable.num_targets)

    def _of_groups(self, indices: np.ndarray, count: Callable[[GroupTable, np.ndarray], np.ndarray]) -> np.ndarray:
        dataset = np.searchsorted(self._ends, indices, side="right")
        counts = np.empty(len(indices), dtype=np.int64)
        for d in np.unique(dataset):
            chosen = dataset == d
            local = indices[chosen] - (self._ends[d - 1] if d else 0)
            selected = self._selected[d]
            counts[chosen] = count(self.tables[d], local if selected is None else selected[local])
        return counts

    def stream(self, seed: int, shuffle: bool = True) -> GroupStream:
        """The order in which training visits the groups."""
        return GroupStream(self.sizes, self.weights, seed=seed, shuffle=shuffle)

    def report_lines(self) -> list[str]:
        """What became of the rows of every source, and what sharing prompts saves."""
        lines: list[str] = []
        for name, table, size in zip(self.names, self.tables, self.sizes, strict=True):
            lines.extend(table.report.lines(name))
            if size != len(table):
                lines.append(f"  of these, {size} groups are in this split")
            apart = table.total_conversation_tokens()
            lines.append(
                f"  {table.total_tokens:,} tokens to compute, {apart:,} if every prompt were repeated"
                f" ({1 - table.total_tokens / max(1, apart):.0%} saved)"
            )
        return lines

    def report(self) -> dict[str, Any]:
        """The same counts as data, by source."""
        return {
            name: {**table.report.to_json(), "num_groups_used": size, "num_tokens": table.total_tokens}
            for name, table, size in zip(self.names, self.tables, self.sizes, strict=True)
        }
