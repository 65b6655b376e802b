"""The practice world: a small town, its places, and three facts about each.

Every value belongs to one place only and is found in text by its words alone, so a reader (and the rule) can tell
which fact a sentence states without knowing how it is phrased.
"""

from __future__ import annotations

from typing import Final

__all__ = ["ASPECT_CUES", "FACTS", "PLACES", "TOWN", "UNKNOWN_PLACES"]

TOWN: Final = "Willowbrook"

FACTS: Final[dict[str, dict[str, str]]] = {
    "bakery": {"opens": "six", "street": "Mill Street", "fame": "rye bread"},
    "market": {"opens": "seven", "street": "Castle Square", "fame": "fresh fruit"},
    "pool": {"opens": "eight", "street": "Lake Road", "fame": "warm water"},
    "library": {"opens": "nine", "street": "Oak Lane", "fame": "old maps"},
    "museum": {"opens": "ten", "street": "King Street", "fame": "stone tools"},
    "cafe": {"opens": "eleven", "street": "Bridge Road", "fame": "apple cake"},
    "garden": {"opens": "noon", "street": "Hill Lane", "fame": "red roses"},
    "tower": {"opens": "two", "street": "Church Square", "fame": "wide views"},
    "theatre": {"opens": "three", "street": "Rose Street", "fame": "merry plays"},
    "harbour": {"opens": "five", "street": "Sand Road", "fame": "white boats"},
}
"""Place to aspect to value: when it opens, the street it is on, and what it is known for."""

PLACES: Final = tuple(FACTS)

UNKNOWN_PLACES: Final = ("airport", "school", "hotel")
"""Places that visitors ask about although the town has none: nobody knows anything about them."""

ASPECT_CUES: Final[dict[str, tuple[str, ...]]] = {
    "opens": ("open", "opens"),
    "street": ("where", "street", "find"),
    "fame": ("known", "famous", "special"),
}
"""The words of a question that say which aspect it asks about."""
