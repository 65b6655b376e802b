"""The page that a server shows at ``/``: rank answers, compare two models, label pairs."""

from __future__ import annotations

from xrlhf.serving.page.document import Page, make_page

__all__ = ["Page", "make_page"]
