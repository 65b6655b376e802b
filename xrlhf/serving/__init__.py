"""Reward models over HTTP: a server that speaks several protocols, and a client."""

from __future__ import annotations

from xrlhf.serving.client import AsyncClient, Client, Rewards, ServerRefused

__all__ = ["AsyncClient", "Client", "Rewards", "ServerRefused"]
