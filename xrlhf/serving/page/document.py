"""The page as one document that loads nothing, and what a browser may run of it."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from xrlhf.pages import render

__all__ = ["Page", "make_page"]

_FOLDER = Path(__file__).parent
_INLINE = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)


@dataclass(frozen=True)
class Page:
    """A page and the headers it is sent with.

    Args:
        html: The document.
        headers: They let a browser run the page's own style and script, ask the server that it came from, and nothing
            else.
    """

    html: str
    headers: dict[str, str]


def make_page(model: str, *, needs_key: bool) -> Page:
    """The page of a server.

    Args:
        model: What the model is called.
        needs_key: Whether requests need an API key, which the page then asks for.
    """
    from markupsafe import Markup

    html = render(
        _FOLDER / "page.html.jinja",
        model=model,
        needs_key=needs_key,
        own_style=Markup((_FOLDER / "page.css").read_text(encoding="utf-8")),
        script=Markup((_FOLDER / "page.js").read_text(encoding="utf-8")),
    )
    allowed: dict[str, list[str]] = {"style": [], "script": []}
    for kind, text in _INLINE.findall(html):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        allowed[kind].append(f"'sha256-{digest}'")
    policy = "; ".join(
        [
            "default-src 'none'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            *(f"{kind}-src {' '.join(digests)}" for kind, digests in allowed.items()),
        ]
    )
    return Page(
        html,
        {
            "Content-Security-Policy": policy,
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        },
    )
