from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Optional, Union

import pytest
import recipe_parts

from xrlhf.config.signature import Annotation, read_annotation, read_signature


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (int, Annotation(frozenset({int}), False, False)),
        ("int", Annotation(frozenset({int}), False, False)),
        (Optional[float], Annotation(frozenset({float}), True, False)),  # noqa: UP045 - the older spellings too
        ("Optional[float]", Annotation(frozenset({float}), True, False)),
        ("typing.Optional['float']", Annotation(frozenset({float}), True, False)),
        (Union[int, str, None], Annotation(frozenset({int, str}), True, False)),  # noqa: UP007
        ("Union[int, str]", Annotation(frozenset({int, str}), False, False)),
        (int | None, Annotation(frozenset({int}), True, False)),
        ("int | None", Annotation(frozenset({int}), True, False)),
        (tuple[float, float], Annotation(frozenset({tuple}), False, False)),
        ("dict[str, int] | None", Annotation(frozenset({dict}), True, False, is_mapping=True)),
        (dict[str, Any], Annotation(frozenset({dict}), False, False, is_mapping=True)),
        ("Mapping[str, Any] | None", Annotation(frozenset(), True, True, is_mapping=True)),
        (Mapping[str, Any], Annotation(frozenset(), False, True, is_mapping=True)),
        ("nn.Module | Mapping[str, Any] | None", Annotation(frozenset(), True, True)),
        ("None", Annotation(frozenset(), True, False)),
        ("torch.Tensor | float", Annotation(frozenset({float}), False, True)),
        ("Callable[[int], str] | None", Annotation(frozenset(), True, True)),
        (Any, Annotation(frozenset(), False, True)),
        ("Sequence[str]", Annotation(frozenset(), False, True)),
        ("not python (", Annotation(frozenset(), False, True)),
        (inspect.Parameter.empty, Annotation()),
    ],
)
def test_read_annotation(annotation: Any, expected: Annotation) -> None:
    assert read_annotation(annotation) == expected


def test_read_signature_names_what_can_be_given_by_name() -> None:
    trainer = read_signature(recipe_parts.Trainer)
    assert trainer is not None
    assert list(trainer.parameters) == ["loss", "steps", "clip", "shuffle", "betas", "scale", "callback"]
    assert trainer.required == ["loss", "steps"]
    assert not trainer.takes_any
    method = read_signature(recipe_parts.Trainer.from_name)
    assert method is not None
    assert list(method.parameters) == ["name"]
    assert method.takes_any


def test_read_signature_is_none_where_python_cannot_tell() -> None:
    assert read_signature(3) is None
    assert read_signature(dict) is None
