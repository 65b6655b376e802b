"""The rule: points derived by hand, sentence by sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xrlhf.data.practice.generate import practice_prompts
from xrlhf.data.practice.rule import (
    BEST_SCORE,
    WORST_SCORE,
    Mark,
    best_answer,
    mark_answer,
    score_answer,
    topic_of,
)
from xrlhf.data.practice.world import TOPICS, UNKNOWN_TOPICS
from xrlhf.structures import Message


def ask(*turns: str) -> list[Message]:
    """User turns with an answer about bread between them."""
    messages: list[Message] = [{"role": "system", "content": "You give good advice on tea."}]
    for turn in turns:
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": "Wrap the loaf in cloth."}]
    return messages[:-1]


BICYCLES = ask("How do I keep bread fresh?", "I have read a book about tea. Why do old bicycles squeak?")
RADIOS = ask("How do I keep bread fresh?", "How do I repair radios?")


@pytest.mark.parametrize(
    ("answer", "points"),
    [
        # the tip 4
        ("Put some oil on the chain.", 4),
        # in other words, without capitals, key words anywhere in the sentence: 4
        ("i would oil that chain!", 4),
        # courtesy 2 + tip 4
        ("With pleasure. Put some oil on the chain.", 6),
        # both in one sentence: 2 + 4
        ("I am happy to tell you: put some oil on the chain.", 6),
        # courtesy counts once: 2 + 4 + 0
        ("With pleasure. Put some oil on the chain. Good luck!", 6),
        # no use -1, tip 4
        ("Let me think. Put some oil on the chain.", 3),
        # tip 4, rude -3
        ("Put some oil on the chain. Now leave me alone.", 1),
        # a bad tip -3
        ("Rub sand into the chain.", -3),
        # tip 4, bad tip -3
        ("Put oil on the chain. Rub sand into the chain.", 1),
        # good tips on what earlier turns and the remark were about: -2 each
        ("Wrap the loaf in a clean cloth.", -2),
        ("Wrap the loaf in a clean cloth. Warm the pot and wait four minutes.", -4),
        # the same sentence again, however it is written: 4 - 2
        ("Put some oil on the chain. PUT SOME OIL ON THE CHAIN!", 2),
        # the same tip in other words: 4 - 2
        ("Put some oil on the chain. The chain needs oil.", 2),
        # said three times: -3 - 2 - 2
        ("Rub sand into the chain. Rub sand into the chain. Rub sand into the chain.", -7),
        # a tip that is there but not finished: 4 - 2
        ("Put some oil on the chain", 2),
        # broken off before the key word: no use -1, unfinished -2
        ("Put some oil on the", -3),
        # a closing quote or bracket after the full stop still ends it: 4
        ('"Put some oil on the chain."', 4),
        # nobody needs not to know: no use -1
        ("I do not know.", -1),
        # a negation gives no tip: no use -1
        ("Never put sand into the chain.", -1),
        # two tips in one sentence are none: -1
        ("Put oil on the chain and sand into the chain.", -1),
        # nothing: unfinished -2
        ("", -2),
        ("  \n ", -2),
        # no words, no end: no use -1, unfinished -2
        ("%%%", -3),
        ("日本語 😀", -3),
        # a line break ends a sentence: -1 - 1 - 2
        ("hm\nwell", -4),
        # 3 sentences, twice said again: -1 - 2 - 2
        ("Well. Well. Well.", -5),
        # 41 words are one more than forty: 4 - 1 - 1
        ("Put some oil on the chain. " + "really " * 34 + "so.", 2),
        # 51 words are eleven more: 4 - 1 - 2
        ("Put some oil on the chain. " + "really " * 44 + "so.", 1),
        # rude and courteous in one sentence: 2 - 3
        ("Thank you for such a silly question.", -1),
        # key words are whole words: no use -1
        ("Foil chains.", -1),
    ],
)
def test_points_derived_by_hand(answer: str, points: float) -> None:
    assert score_answer(BICYCLES, answer) == points


@pytest.mark.parametrize(
    ("answer", "points"),
    [
        # admitting it is the answer where nobody knows: 4, with courtesy 6, twice 4 - 2
        ("I do not know.", 4),
        ("Good question! I am not sure.", 6),
        ("I do not know. I am not sure.", 2),
        # a tip on anything else -2, a bad one -3
        ("Put some oil on the chain.", -2),
        ("Put them in a hot oven.", -3),
    ],
)
def test_points_where_nobody_knows(answer: str, points: float) -> None:
    assert score_answer(RADIOS, answer) == points


def test_no_answer_falls_below_the_worst_score() -> None:
    # 20 different sentences of no use would be -20
    assert score_answer(BICYCLES, " ".join(f"Number {i}." for i in range(20))) == WORST_SCORE == -9


def test_marks_name_sentence_and_reason() -> None:
    answer = "Good question! Wrap the loaf in cloth. Oil the chain. Find it out yourself"
    assert mark_answer(BICYCLES, answer) == [
        Mark(2.0, "courtesy", "Good question!"),
        Mark(-2.0, "not asked for", "Wrap the loaf in cloth."),
        Mark(4.0, "the tip", "Oil the chain."),
        Mark(-3.0, "rude", "Find it out yourself"),
        Mark(-2.0, "unfinished", ""),
    ]
    assert score_answer(BICYCLES, answer) == -1


@pytest.mark.parametrize(
    ("messages", "topic"),
    [
        (BICYCLES, "bicycles"),
        (RADIOS, None),
        (ask("How do I keep bread fresh?"), "bread"),
        # the last question decides, wherever it stands in the turn
        (ask("Why is my tea bitter? I mean: what do cats need? My sister loves roses."), "cats"),
        # without a question mark, the last sentence
        (ask("I like tea. Tell me about boots"), "boots"),
        (ask('She asked "Why is my tea bitter?" and left.'), "tea"),
        (ask("What do cats think of roses?"), None),
        (ask("Hello!"), None),
        (ask(""), None),
        ([], None),
        ([{"role": "assistant", "content": "Tea?"}], None),
        ([{"role": "user", "content": [{"type": "image"}]}], None),
    ],
)
def test_topic_of_the_last_question(messages: list[Message], topic: str | None) -> None:
    assert topic_of(messages) == topic


def test_every_topic_is_named_in_its_questions_alone() -> None:
    for name, topic in TOPICS.items():
        assert [topic_of(ask(question)) for question in topic.questions] == [name] * len(topic.questions)
    for questions in UNKNOWN_TOPICS.values():
        assert [topic_of(ask(question)) for question in questions] == [None] * len(questions)


def test_every_tip_is_known_by_its_own_key_words() -> None:
    # The good tip on what was asked gets 4 and nothing else, the bad one -3, each good tip on something else -2.
    for name, topic in TOPICS.items():
        prompt = ask(topic.questions[0])
        assert {score_answer(prompt, sentence) for sentence in topic.good.sentences} == {4}, name
        assert {score_answer(prompt, sentence) for sentence in topic.bad.sentences} == {-3}, name
        others = [sentence for other in TOPICS if other != name for sentence in TOPICS[other].good.sentences]
        assert {score_answer(prompt, sentence) for sentence in others} == {-2}, name


def test_the_best_answer_has_the_best_score() -> None:
    prompts = [*practice_prompts(500, part="held_out"), *practice_prompts(500), RADIOS, BICYCLES, [], ask("Hello!")]
    assert {score_answer(prompt, best_answer(prompt)) for prompt in prompts} == {BEST_SCORE}


@given(
    st.text()
    | st.text(alphabet="abc .!?\n")
    | st.lists(
        st.sampled_from(
            [s for topic in TOPICS.values() for tip in (topic.good, topic.bad) for s in tip.sentences]
            + ["Thank you for asking!", "Good luck!", "I do not know.", "Leave me alone."]
        )
    ).map(" ".join)
)
def test_any_text_has_a_score_and_none_beats_the_best(answer: str) -> None:
    for prompt in (BICYCLES, RADIOS):
        assert WORST_SCORE <= score_answer(prompt, answer) <= BEST_SCORE
