"""The protocols that the server speaks, one file each, over one scoring core."""

from __future__ import annotations

from xrlhf.serving.protocols.routes import ROUTES, Route, error_shape
from xrlhf.serving.protocols.shape import Call, Endpoint, ErrorShape

__all__ = ["ROUTES", "Call", "Endpoint", "ErrorShape", "Route", "error_shape"]
