"""How people in the practice world talk, apart from their questions and tips; ``{name}`` stands for a topic."""

from __future__ import annotations

from typing import Final

__all__ = [
    "CLOSINGS",
    "GREETINGS",
    "IGNORANCE",
    "OPENINGS",
    "PLAIN_OPENINGS",
    "REMARKS",
    "RUDE_CLOSINGS",
    "RUDE_OPENINGS",
    "SYSTEM",
    "THANKS",
    "VAGUE",
]

SYSTEM: Final = ("You give good advice.", "You are a friendly neighbour.")

GREETINGS: Final = ("Hello!", "Good morning.", "Excuse me.")
THANKS: Final = ("Thanks.", "I see.", "Great.")
REMARKS: Final = (
    "We talked about {name} yesterday.",
    "I have read a book about {name}.",
    "My sister knows all about {name}.",
)
"""What people say before they ask; none of it is a question, and all of it names another topic."""

OPENINGS: Final = ("Thank you for asking!", "Good question!", "I am happy to help.", "With pleasure.")
CLOSINGS: Final = ("Have a lovely day!", "Good luck!")
PLAIN_OPENINGS: Final = ("Let me think.", "Many people ask me that.", "Here is what they say.")
RUDE_OPENINGS: Final = ("What a silly thing to ask.", "You waste my time.")
RUDE_CLOSINGS: Final = ("Find it out yourself next time.", "I could not care less.", "Now leave me alone.")
VAGUE: Final = ("That depends on many things.", "Somebody else can tell you.", "It is hard to say.")
IGNORANCE: Final = ("I do not know.", "I am sorry, I do not know that.", "I am not sure.")
