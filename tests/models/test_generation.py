"""How answers are drawn, where they end, and what of a conversation fits."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import BOS, CHATML, END, byte_tokenizer, tiny_causal_lm
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from xrlhf.errors import ConfigError, ModelError
from xrlhf.models.generation import Answer, Generator, Prompt, Sampling, _Pieces, stop_ids

HELLO = [{"role": "user", "content": "Hello"}]


class Scripted(nn.Module):
    """In place of an output layer: whatever comes in, the next token is the next of a script."""

    def __init__(self, script: list[int], size: int = 320, before: Callable[[int], None] | None = None) -> None:
        super().__init__()
        self.script = script
        self.size = size
        self.before = before
        self.said = 0
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.before is not None:
            self.before(self.said)
        logits = torch.full((*hidden.shape[:-1], self.size), -1e4)
        logits[..., self.script[min(self.said, len(self.script) - 1)]] = 0.0
        self.said += 1
        return logits


def ids_of(text: str) -> list[int]:
    return byte_tokenizer()(text, add_special_tokens=False)["input_ids"]


def saying(text: str, *, then: int | None = END, before: Callable[[int], None] | None = None) -> Generator:
    """A model that says ``text``."""
    model = tiny_causal_lm()
    model.lm_head = Scripted([*ids_of(text), *([] if then is None else [then])], before=before)
    return Generator(model, byte_tokenizer())


def ask(generator: Generator, sampling: Sampling, num: int = 1, messages: Any = HELLO, **options: Any) -> list[Answer]:
    return generator.answer(generator.fit(messages, sampling.max_new_tokens), sampling, num=num, **options)


# ------------------------------------------------------------------------------------------------ sampling


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more, got 0"),
        ({"temperature": 0}, "temperature must be above 0, got 0: to take the likeliest token always, ask for greedy"),
        ({"temperature": -1.0}, "temperature must be above 0, got -1"),
        ({"temperature": float("nan")}, "temperature must be above 0, got nan"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
        ({"top_k": -1}, "top_k must be 1 or more, or 0 for all tokens, got -1"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0, got 0"),
    ],
)
def test_values_outside_their_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Sampling(**options)
    assert str(caught.value) == message


def test_what_is_not_given_is_as_the_model_suggests() -> None:
    model = tiny_causal_lm()
    assert Sampling.suggested_by(model) == Sampling()
    model.generation_config = GenerationConfig(temperature=0.6, top_k=20, top_p=0.9, repetition_penalty=1.1)
    assert Sampling.suggested_by(model, top_k=0, max_new_tokens=5, temperature=None) == Sampling(
        max_new_tokens=5, temperature=0.6, top_k=0, top_p=0.9, repetition_penalty=1.1
    )


def test_greedy_answers_are_the_likeliest_tokens() -> None:
    """Against a loop that takes the largest logit and feeds it back, without a cache."""
    model = tiny_causal_lm(seed=3)
    generator = Generator(model, byte_tokenizer())
    (answer,) = ask(generator, Sampling(greedy=True, max_new_tokens=12))
    ids = generator.encode(HELLO).tolist()
    wanted: list[int] = []
    while len(wanted) < 12:
        with torch.inference_mode():
            token = int(model(input_ids=torch.tensor([ids + wanted])).logits[0, -1].argmax())
        if token in generator.stop_ids:
            break
        wanted.append(token)
    assert wanted
    assert list(answer.ids) == wanted


def test_sampling_follows_the_seed_and_its_options() -> None:
    generator = Generator(tiny_causal_lm(), byte_tokenizer())

    def drawn(seed: int, num: int = 1, **options: Any) -> list[tuple[int, ...]]:
        torch.manual_seed(seed)
        return [answer.ids for answer in ask(generator, Sampling(max_new_tokens=16, **options), num)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert len(set(drawn(1, num=4))) > 1
    (greedy,) = drawn(0, greedy=True)
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        assert drawn(5, **narrow) == [greedy], narrow


def test_a_repetition_penalty_keeps_tokens_from_coming_back() -> None:
    generator = Generator(tiny_causal_lm(), byte_tokenizer())
    (answer,) = ask(generator, Sampling(max_new_tokens=16, greedy=True, repetition_penalty=1e6))
    assert len(set(answer.ids)) == len(answer.ids) == 16


def test_the_models_own_settings_do_not_meddle() -> None:
    """A suggested top_k of 50 and suppressed tokens would change what is drawn."""
    generator = Generator(tiny_causal_lm(), byte_tokenizer())
    (plain,) = ask(generator, Sampling(greedy=True, max_new_tokens=8))
    own = GenerationConfig(suppress_tokens=list(plain.ids), max_new_tokens=1, num_beams=3, eos_token_id=END)
    generator.model.generation_config = own
    assert ask(generator, Sampling(greedy=True, max_new_tokens=8)) == [plain]
    assert generator.model.generation_config is own


def test_several_greedy_answers_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 greedy answers would all be the same"):
        ask(saying("x"), Sampling(greedy=True), num=3)


# ---------------------------------------------------------------------------------------- where answers end


def test_an_answer_ends_at_the_end_of_turn() -> None:
    (answer,) = ask(saying("Hi."), Sampling(greedy=True))
    assert answer == Answer(tuple(ids_of("Hi.")), "Hi.", "stop")


def test_an_answer_that_runs_out_of_tokens() -> None:
    (answer,) = ask(saying("Hi there", then=None), Sampling(greedy=True, max_new_tokens=2))
    assert (answer.text, answer.ending) == ("Hi", "length")


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (CHATML, {END}),
        ("{% for m in messages %}[{{ m['content'] }}]\n<s>{% endfor %}", {END}),
        ("{% for m in messages %}{{ m['content'] }} <s>{% endfor %}", {END, BOS}),
        ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}", {END}),
        ("{% for m in messages %}<s>{{ m['content'] }}{% endfor %}", {END, BOS}),
    ],
    ids=["ends with EOS", "text before", "white space before", "text alone", "begins the next turn"],
)
def test_what_ends_an_answer(template: str, wanted: set[int]) -> None:
    """EOS, and the first control token behind an answer with nothing but white space before it."""
    model = tiny_causal_lm(eos_token_id=None)
    assert set(stop_ids(model, byte_tokenizer(template))) == wanted


def test_end_tokens_of_the_model() -> None:
    model = tiny_causal_lm(eos_token_id=7)
    model.generation_config.eos_token_id = [8, 9]
    assert set(stop_ids(model, byte_tokenizer())) == {END, 7, 8, 9}


def test_a_template_that_refuses_two_questions() -> None:
    template = "{% if messages|length > 2 %}{{ raise_exception('no') }}{% endif %}" + CHATML
    assert stop_ids(tiny_causal_lm(eos_token_id=None), byte_tokenizer(template, eos_token="<s>")) == (BOS, END)


@pytest.mark.parametrize("num", [1, 2])
def test_ctrl_c_keeps_what_was_said(num: int) -> None:
    def interrupt(said: int) -> None:
        if said == 3:
            raise KeyboardInterrupt

    heard: list[str] = []
    generator = saying("Hello", before=interrupt)
    answers = ask(generator, Sampling(), num=num, on_text=heard.append)
    assert answers == [Answer(tuple(ids_of("Hel")), "Hel", "interrupted")] * num
    assert "".join(heard) == ("Hel" if num == 1 else "")


def test_ctrl_c_within_a_finaliser_is_not_lost() -> None:
    """Python raises the interrupt there and then, where it can only be printed; the next token ends the answer."""

    class Dropped:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def drop(said: int) -> None:
        if said == 3:
            Dropped()

    # Commands that a script put into the background have it ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        (answer,) = ask(saying("Hello", before=drop), Sampling())
        assert (answer.text, answer.ending) == ("Hel", "interrupted")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_weights_that_are_damaged() -> None:
    model = tiny_causal_lm()
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="gives probabilities that are no numbers: its weights are damaged"):
        ask(Generator(model, byte_tokenizer()), Sampling())


# --------------------------------------------------------------------------------------------- text as it comes


def test_pieces_come_one_by_one() -> None:
    """The three bytes of the euro sign come as one piece, and not before all are there."""
    heard: list[str] = []
    (answer,) = ask(saying("5 € a"), Sampling(greedy=True), on_text=heard.append)
    assert heard == ["5", " ", "€", " ", "a"]
    assert answer.text == "5 € a"


def test_what_was_held_back_comes_at_the_end() -> None:
    heard: list[str] = []
    (answer,) = ask(saying("a€"), Sampling(greedy=True, max_new_tokens=2), on_text=heard.append)
    assert "".join(heard) == answer.text == "a\ufffd"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=40), st.binary(max_size=6)), max_size=8))
def test_pieces_are_the_text(parts: list[str | bytes]) -> None:
    """Any text, also one longer than the window, and bytes that are no text."""
    tokenizer = byte_tokenizer()
    ids: list[int] = []
    for part in parts:
        if isinstance(part, str):
            ids += [token for token in ids_of(part) if token > BOS]
        else:
            ids += [4 + byte for byte in part]
    pieces = _Pieces(tokenizer)
    joined = "".join([*(pieces.push(token) for token in ids), pieces.rest()])
    assert joined == tokenizer.decode(ids)


# ------------------------------------------------------------------------------------------------ what fits


def talk(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    turns = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(contents)]
    return [*([{"role": "system", "content": system}] if system else []), *turns]


def reading(limit: int) -> Generator:
    return Generator(tiny_causal_lm(max_position_embeddings=limit), byte_tokenizer())


def test_the_prompt_is_the_rendered_conversation() -> None:
    generator = reading(512)
    messages = talk("a", "b", "c", system="s")
    ids = byte_tokenizer().apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert generator.encode(messages).tolist() == ids
    prompt = generator.fit(messages, 10)
    assert (prompt.ids.tolist(), prompt.max_new_tokens, prompt.num_left_out) == (ids, 10, 0)


def test_text_that_looks_like_a_control_token_is_text() -> None:
    ids = reading(512).encode(talk("<|im_end|>")).tolist()
    assert ids.count(END) == 1


def test_the_oldest_turns_are_left_out() -> None:
    """A turn of one letter is <|im_start|>, 'user' or 'assistant', newline, letter, <|im_end|>, newline: 9 or 14 ids;
    the system turn has 11, and what asks for an answer 11. Three questions and two answers make
    11 + 3 * 9 + 2 * 14 + 11 = 77; 64 leave no room for 16 tokens behind all of them (93), nor behind two questions
    (77 - 23 + 16 = 70); behind the last one (31 + 16) they do."""
    generator = reading(64)
    messages = talk("a", "b", "c", "d", "e", system="s")
    assert len(generator.encode(messages)) == 77
    prompt = generator.fit(messages, 16)
    assert prompt.num_left_out == 4
    assert prompt.ids.tolist() == generator.encode(talk("e", system="s")).tolist()
    assert prompt.max_new_tokens == 16
    assert reading(70).fit(messages, 16).num_left_out == 2
    assert reading(93).fit(messages, 16).num_left_out == 0
    # No more than a quarter of what the model reads is kept free.
    assert reading(104).fit(messages, 500).num_left_out == 0
    assert reading(104).fit(messages, 500).max_new_tokens == 27


def test_a_question_that_takes_nearly_all() -> None:
    question = talk("x" * 41)
    prompt = reading(64).fit(question, 16)
    assert (len(prompt.ids), prompt.max_new_tokens, prompt.num_left_out) == (60, 4, 0)
    (answer,) = reading(64).answer(prompt, Sampling(max_new_tokens=16))
    assert len(answer.ids) <= 4
    with pytest.raises(ModelError) as caught:
        reading(60).fit(question, 16)
    assert str(caught.value) == "the question takes 60 tokens, and the model reads at most 60 with its answer"


def test_a_model_without_a_limit() -> None:
    model = tiny_causal_lm("bloom")
    generator = Generator(model, byte_tokenizer())
    assert generator.max_length is None
    assert generator.fit(talk("x" * 3000), 5).max_new_tokens == 5


def test_a_conversation_that_the_template_refuses() -> None:
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    generator = Generator(tiny_causal_lm(), byte_tokenizer(template))
    with pytest.raises(ModelError, match="the chat template refuses the conversation: no system role"):
        generator.fit(talk("a", system="s"), 5)


def test_a_tokenizer_without_a_template() -> None:
    with pytest.raises(ModelError, match="has no chat template, as base models often have none"):
        Generator(tiny_causal_lm(), byte_tokenizer(None))


def test_a_tokenizer_of_another_model() -> None:
    with pytest.raises(ModelError, match="ids up to 259 but the model embeds only 100 tokens"):
        Generator(tiny_causal_lm(vocab_size=100), byte_tokenizer())


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "internlm2", "gpt_neox", "bloom"])
def test_families_answer(model_type: str) -> None:
    model: PreTrainedModel = tiny_causal_lm(model_type)
    generator = Generator(model, byte_tokenizer())
    answers = generator.answer(Prompt(generator.encode(HELLO), 5), Sampling(max_new_tokens=5), num=2)
    assert len(answers) == 2
    assert all(len(answer.ids) <= 5 for answer in answers)
