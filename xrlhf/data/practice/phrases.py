"""How people in the practice world talk: the sentences that questions and answers are drawn from.

``{p}`` stands for a place, ``{v}`` for a value, ``{t}`` for the town.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

__all__ = [
    "CLOSINGS",
    "GREETINGS",
    "IGNORANCE",
    "OPENINGS",
    "PLAIN_OPENINGS",
    "QUESTIONS",
    "REMARKS",
    "RUDE_CLOSINGS",
    "RUDE_OPENINGS",
    "SHORT_STATEMENTS",
    "STATEMENTS",
    "SYSTEM",
    "THANKS",
    "VAGUE",
    "all_phrases",
]

SYSTEM: Final = ("You help visitors of {t}.", "You are the friendly guide of {t}.")

GREETINGS: Final = ("Hello!", "Good morning.", "Excuse me.")
THANKS: Final = ("Thanks.", "I see.", "Great.")
REMARKS: Final = (
    "I have just been to the {p}.",
    "My friend works at the {p}.",
    "We walked past the {p}.",
    "I already know when the {p} opens.",
    "I already know where the {p} is.",
    "Everybody talks about the {p}.",
)
"""What a visitor says before asking; none of it is a question, and all of it names another place."""

QUESTIONS: Final[dict[str, tuple[str, ...]]] = {
    "opens": ("When does the {p} open?", "What time does the {p} open?", "Do you know when the {p} opens?"),
    "street": ("Where is the {p}?", "Which street is the {p} on?", "Where can I find the {p}?"),
    "fame": ("What is the {p} known for?", "What is the {p} famous for?", "What is special about the {p}?"),
}

STATEMENTS: Final[dict[str, tuple[str, ...]]] = {
    "opens": ("The {p} opens at {v}.", "You can visit the {p} from {v} on."),
    "street": ("The {p} is on {v}.", "You will find the {p} on {v}."),
    "fame": ("The {p} is known for {v}.", "People come to the {p} for {v}."),
}
SHORT_STATEMENTS: Final[dict[str, tuple[str, ...]]] = {
    "opens": ("It opens at {v}.", "You can visit it from {v} on."),
    "street": ("It is on {v}.", "You will find it on {v}."),
    "fame": ("It is known for {v}.", "People come for {v}."),
}
"""The same without the place: about whatever was asked for."""

OPENINGS: Final = ("Thank you for asking!", "Welcome to {t}!", "I am happy to help.", "With pleasure.")
CLOSINGS: Final = ("Have a lovely day!", "Enjoy your visit!", "You are always welcome.")
PLAIN_OPENINGS: Final = ("Let me think.", "Many people ask me that.", "Well, here is what they say.")
RUDE_OPENINGS: Final = ("What a silly question.", "You waste my time.")
RUDE_CLOSINGS: Final = ("Look it up yourself next time.", "I could not care less.", "Now leave me alone.")
VAGUE: Final = ("That depends on the season.", "Somebody at the station can tell you.", "It is hard to say.")
IGNORANCE: Final = ("I do not know.", "I am sorry, I do not know that.", "I am not sure.")


def all_phrases() -> Iterator[str]:
    """Every sentence above, its gaps unfilled."""
    yield from (*SYSTEM, *GREETINGS, *THANKS, *REMARKS, *VAGUE, *IGNORANCE)
    yield from (*OPENINGS, *CLOSINGS, *PLAIN_OPENINGS, *RUDE_OPENINGS, *RUDE_CLOSINGS)
    for forms in (QUESTIONS, STATEMENTS, SHORT_STATEMENTS):
        for sentences in forms.values():
            yield from sentences
