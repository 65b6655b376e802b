"""The practice world: what people ask for advice about, the good tip for each topic, and a bad one.

A tip is known by its key words, which no other tip shares as a whole, so a reader (and the rule) can tell which tip a
sentence gives without knowing how it is phrased.
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["TOPICS", "UNKNOWN_TOPICS", "Tip", "Topic"]


class Tip(NamedTuple):
    """A piece of advice: the words that it is known by, and sentences that give it."""

    key_words: tuple[str, ...]
    sentences: tuple[str, ...]


class Topic(NamedTuple):
    """What can be asked about one thing, the tip that helps, and one that does harm."""

    questions: tuple[str, ...]
    good: Tip
    bad: Tip


TOPICS: Final[dict[str, Topic]] = {
    "bread": Topic(
        ("How do I keep bread fresh?", "Why does my bread get hard so soon?"),
        Tip(("wrap", "cloth"), ("Wrap the loaf in a clean cloth.", "A loaf stays soft when you wrap it in cloth.")),
        Tip(("loaf", "rain"), ("Leave the loaf out in the rain.",)),
    ),
    "tea": Topic(
        ("How do I make good tea?", "Why is my tea so bitter?"),
        Tip(
            ("pot", "minutes"),
            ("Warm the pot and wait four minutes.", "Take the leaves out of the pot after four minutes."),
        ),
        Tip(("boil", "hour"), ("Boil the leaves for an hour.",)),
    ),
    "roses": Topic(
        ("When should I cut my roses?", "How do I get more roses?"),
        Tip(("stems", "spring"), ("Cut the stems in early spring.", "Early spring is the time to cut the stems.")),
        Tip(("stems", "frost"), ("Break the stems in hard frost.",)),
    ),
    "bicycles": Topic(
        ("Why do old bicycles squeak?", "How do I look after bicycles?"),
        Tip(("chain", "oil"), ("Clean the chain and give it a drop of oil.", "Put some oil on the chain.")),
        Tip(("chain", "sand"), ("Rub sand into the chain.",)),
    ),
    "boots": Topic(
        ("How do I dry wet boots?", "What can I do when my boots are wet?"),
        Tip(("fill", "newspaper"), ("Fill them with old newspaper.", "Take some newspaper and fill them with it.")),
        Tip(("hot", "oven"), ("Put them in a hot oven.",)),
    ),
    "cats": Topic(
        ("What do cats need?", "How do I get my cats to drink more?"),
        Tip(("bowl", "far"), ("Put the water bowl far from the food.", "Keep the bowl far away from the meat.")),
        Tip(("bowl", "sugar"), ("Put sugar in the bowl.",)),
    ),
    "windows": Topic(
        ("How do I clean windows?", "Why are my windows never clear?"),
        Tip(("vinegar", "rag"), ("Use a little vinegar and a soft rag.", "Wipe them with a rag and some vinegar.")),
        Tip(("scratch", "knife"), ("Scratch the glass with a knife.",)),
    ),
    "tomatoes": Topic(
        ("How do I grow tomatoes?", "Why are my tomatoes so small?"),
        Tip(("sun", "roots"), ("Give them sun and water the roots.", "They need sun above and wet roots below.")),
        Tip(("dark", "cellar"), ("Hide them in a dark cellar.",)),
    ),
}

UNKNOWN_TOPICS: Final[dict[str, tuple[str, ...]]] = {
    name: (f"How do I repair {name}?", f"Why are {name} always wrong?") for name in ("radios", "clocks")
}
"""What people ask about although nobody knows the answer."""
