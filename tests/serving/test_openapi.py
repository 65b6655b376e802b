"""Requests made from the server's own OpenAPI description: whatever it allows or not, the answer is one it names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from xrlhf.serving.protocols import ROUTES

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.mark.slow
@pytest.mark.parametrize("path", [*ROUTES, "/health", "/ready", "/info", "/metrics"])
def test_every_answer_is_one_that_the_description_names(serving: Callable[..., Any], path: str) -> None:
    schema = schemathesis.openapi.from_asgi("/openapi.json", serving(max_inputs=8).app)
    operation = schema[path]["POST" if path in ROUTES else "GET"]

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=operation.as_strategy())
    def check(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    check()


def test_every_route_is_described(serving: Callable[..., Any]) -> None:
    described = serving().get("/openapi.json").json()
    assert set(described["paths"]) == {*ROUTES, "/health", "/ready", "/metrics", "/info"}
    for path in ROUTES:
        post = described["paths"][path]["post"]
        assert post["requestBody"]["content"]["application/json"]["schema"]
        assert post["responses"]["200"]["content"]["application/json"]["schema"]
        assert post["description"].strip()
