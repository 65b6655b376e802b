"""Every protocol with the bodies that its own clients send, answers compared key by key and with offline scores."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Callable
from typing import Any

import pytest

from xrlhf.evaluation.scorer import Scorer
from xrlhf.serving.model import ServedModel
from xrlhf.serving.settings import ModelSettings
from xrlhf.structures import Group

QUESTION = "What is 2 + 3?"
ANSWERS = ["It is 5.", "I do not know.", "Five, I think; ask somebody else."]
LONG = "What? " * 60


def conversation(answer: str, question: str = QUESTION) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score))


@pytest.fixture(scope="module")
def offline(scorer: Scorer) -> list[float]:
    """Raw scores of the answers."""
    prompt = conversation("")[:1]
    (scores,) = scorer.score([Group(prompt, tuple(conversation(answer)[1:] for answer in ANSWERS))])
    assert isinstance(scores, list)
    assert len({round(score, 3) for score in scores}) == 3
    return scores


@pytest.fixture(scope="module")
def texts(scorer: Scorer) -> list[str]:
    """The conversations as clients render them."""
    tokenizer = scorer.encoder.tokenizer
    return [str(tokenizer.apply_chat_template(conversation(answer), tokenize=False)) for answer in ANSWERS]


@pytest.fixture(scope="module")
def lengths(scorer: Scorer) -> list[int]:
    ids = scorer.encoder.encode_conversations([conversation(answer) for answer in ANSWERS])  # type: ignore[misc]
    return [len(item) for item in ids]  # type: ignore[arg-type]


@pytest.fixture
def post(serving: Callable[..., Any]) -> Callable[..., Any]:
    client = serving()

    def send(path: str, body: Any, status: int = 200) -> Any:
        response = client.post(path, json=body)
        assert response.status_code == status, response.text
        send.headers = response.headers  # type: ignore[attr-defined]
        return response.json()

    return send


close = pytest.approx


# ------------------------------------------------------------------------------------------- the project's own


def test_rewards(post: Callable[..., Any], offline: list[float], lengths: list[int]) -> None:
    """A prompt with answers, a prompt with one, and a whole conversation."""
    inputs = [
        {"prompt": QUESTION, "responses": ANSWERS},
        {"prompt": conversation("")[:1], "response": ANSWERS[1]},
        {"messages": conversation(ANSWERS[2])},
    ]
    answer = post("/v1/rewards", {"inputs": inputs})
    assert [item["scores"] for item in answer["results"]] == [
        close(offline, abs=1e-4),
        close([offline[1]], abs=1e-4),
        close([offline[2]], abs=1e-4),
    ]
    assert [item["num_tokens"] for item in answer["results"]] == [lengths, lengths[1:2], lengths[2:]]
    assert answer["results"][0]["truncated"] == [False] * 3
    assert answer["usage"] == {"num_conversations": 5, "num_tokens": sum(lengths) + sum(lengths[1:])}
    assert (answer["object"], answer["model"], answer["activation"]) == ("rewards", "tiny_reward", "none")
    times = answer["timings"]
    assert set(times) == {"tokenise_ms", "queue_ms", "compute_ms", "total_ms"}
    assert times["compute_ms"] > 0
    assert times["total_ms"] >= times["tokenise_ms"] + times["queue_ms"] + times["compute_ms"] - 1
    assert post.headers["x-truncated-inputs"] == "0"  # type: ignore[attr-defined]


def test_rewards_of_one_group_alone_are_the_offline_ones(post: Callable[..., Any], offline: list[float]) -> None:
    """Bit for bit: the same batch is computed."""
    answer = post("/v1/rewards", {"inputs": [{"prompt": QUESTION, "responses": ANSWERS}]})
    assert answer["results"][0]["scores"] == offline


def test_rewards_of_plain_text(post: Callable[..., Any], scorer: Scorer) -> None:
    answer = post("/v1/rewards", {"inputs": [{"text": "Plain text."}]})
    assert [answer["results"][0]["scores"]] == scorer.score([Group("", ("Plain text.",))])


def test_rewards_with_a_sigmoid(post: Callable[..., Any], offline: list[float]) -> None:
    body = {"inputs": [{"prompt": QUESTION, "responses": ANSWERS}], "activation": "sigmoid"}
    assert post("/v1/rewards", body)["results"][0]["scores"] == close([sigmoid(score) for score in offline])


@pytest.mark.parametrize("truncation", ["prompt", "end"])
def test_rewards_cut_on_request(post: Callable[..., Any], reward_folder: Any, truncation: str) -> None:
    row = {"prompt": LONG, "response": "Yes."}
    error = post("/v1/rewards", {"inputs": [row]}, status=422)["error"]
    assert error["message"].startswith("the input has 3")
    assert error["message"].endswith("tokens, the limit is 256")
    assert error["param"] == "input_tokens"
    answer = post("/v1/rewards", {"inputs": [row, {"text": "short"}], "truncation": truncation})
    first, second = answer["results"]
    assert (first["truncated"], second["truncated"]) == ([True], [False])
    assert first["num_tokens"] == [256]
    assert post.headers["x-truncated-inputs"] == "1"  # type: ignore[attr-defined]
    cutting = Scorer.from_pretrained(str(reward_folder), truncation=truncation)  # type: ignore[arg-type]
    group = Group(conversation("", LONG)[:1], (conversation("Yes.")[1:],))
    assert [first["scores"]] == [close(scores, abs=1e-4) for scores in cutting.score([group])]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "inputs: Field required"),
        ({"inputs": []}, "inputs: List should have at least 1 item"),
        ({"inputs": [{"prompt": "?"}]}, r"inputs\[0\]: found prompt; expected one of"),
        ({"inputs": [{"prompt": "?", "respones": ["a"]}]}, "inputs.0.respones: Extra inputs are not permitted"),
        ({"inputs": [{"prompt": "?", "responses": []}]}, "responses is an empty list"),
        ({"inputs": [{"messages": [{"role": "user", "content": "?"}]}]}, "does not end with an assistant message"),
        ({"inputs": [{"messages": [{"role": "bot", "content": "?"}]}]}, "has the role 'bot'"),
        ({"inputs": [{"text": "a"}], "truncation": "left"}, "truncation: Input should be 'prompt' or 'end'"),
        (
            {"inputs": [{"prompt": "?", "response": "a", "chat_template_kwargs": {"chat_template": "x"}}]},
            "chat_template cannot be set by a request",
        ),
    ],
)
def test_rewards_say_what_is_wrong(post: Callable[..., Any], body: dict[str, Any], message: str) -> None:
    import re

    error = post("/v1/rewards", body, status=422)["error"]
    assert re.search(message, error["message"])
    assert (error["type"], error["code"]) == ("BadRequestError", 422)


# ---------------------------------------------------------------------------------------------------- OpenRLHF


def test_get_reward(post: Callable[..., Any], texts: list[str], offline: list[float]) -> None:
    """Texts with their special tokens; prompts and labels come along."""
    answer = post("/get_reward", {"query": texts, "prompts": [QUESTION] * 3, "labels": [""] * 3})
    assert set(answer) == {"rewards", "scores", "extra_logs"}
    assert answer["rewards"] == close(offline, abs=1e-4)
    assert answer["scores"] == answer["rewards"] == answer["extra_logs"]["dummy_scores"]


def test_get_reward_of_nothing(post: Callable[..., Any]) -> None:
    """Clients with several servers send an empty list to all but one."""
    assert post("/get_reward", {"query": [], "prompts": [], "labels": []}) == {
        "rewards": [],
        "scores": [],
        "extra_logs": {"dummy_scores": []},
    }


def test_get_reward_says_what_is_wrong(post: Callable[..., Any]) -> None:
    assert post("/get_reward", {"prompts": []}, status=422) == {"detail": "query: Field required"}
    assert post("/get_reward", {"query": ["x" * 400]}, status=422) == {
        "detail": "the input has 400 tokens, the limit is 256"
    }


# -------------------------------------------------------------------------------------------------------- vLLM


def test_classify(post: Callable[..., Any], texts: list[str], offline: list[float], lengths: list[int]) -> None:
    answer = post("/classify", {"model": "m", "input": texts})
    assert set(answer) == {"id", "object", "created", "model", "data", "usage"}
    assert answer["id"].startswith("classify-")
    assert (answer["object"], answer["model"]) == ("list", "m")
    assert [item["index"] for item in answer["data"]] == [0, 1, 2]
    assert [item["probs"][0] for item in answer["data"]] == close(offline, abs=1e-4)
    assert all(
        item["num_classes"] == 1 and set(item) == {"index", "label", "probs", "num_classes"} for item in answer["data"]
    )
    assert answer["usage"] == {
        "prompt_tokens": sum(lengths),
        "total_tokens": sum(lengths),
        "completion_tokens": 0,
        "prompt_tokens_details": None,
    }


@pytest.mark.parametrize("flag", ["use_activation", "activation", "softmax"])
def test_classify_activation_is_the_requests(
    post: Callable[..., Any], texts: list[str], offline: list[float], flag: str
) -> None:
    (data,) = post("/classify", {"input": texts[0], flag: True})["data"]
    assert data["probs"] == close([sigmoid(offline[0])], abs=1e-4)
    (data,) = post("/classify", {"input": texts[0], flag: False})["data"]
    assert data["probs"] == close([offline[0]], abs=1e-4)


def test_classify_follows_the_models_config(
    serving: Callable[..., Any], scorer: Scorer, texts: list[str], offline: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A one-label model that does not say regression gets a sigmoid, as in vLLM."""
    monkeypatch.setattr(scorer.model.hf_model.config, "problem_type", None)
    client = serving(model=ServedModel(scorer, ModelSettings(path="m")))
    (data,) = client.post("/classify", json={"input": texts[0]}).json()["data"]
    assert data["probs"] == close([sigmoid(offline[0])], abs=1e-4)
    info = client.get("/info").json()
    assert (info["activation"]["/classify (input)"], info["activation"]["/v1/rewards"]) == ("sigmoid", "none")


def test_classify_a_conversation(post: Callable[..., Any], offline: list[float]) -> None:
    (data,) = post("/classify", {"messages": conversation(ANSWERS[0]), "request_id": "7"})["data"]
    assert data["probs"] == close([offline[0]], abs=1e-4)


def test_classify_after_an_open_turn_is_another_score(post: Callable[..., Any], offline: list[float]) -> None:
    body = {"messages": conversation(ANSWERS[0]), "add_generation_prompt": True}
    assert post("/classify", body)["data"][0]["probs"] != close([offline[0]], abs=1e-4)


def test_classify_token_ids(post: Callable[..., Any], scorer: Scorer, texts: list[str], offline: list[float]) -> None:
    ids = scorer.encoder.tokenizer(texts, add_special_tokens=False)["input_ids"]
    one = post("/classify", {"input": ids[0]})["data"]
    several = post("/classify", {"input": ids})["data"]
    assert [item["probs"][0] for item in one] == close(offline[:1], abs=1e-4)
    assert [item["probs"][0] for item in several] == close(offline, abs=1e-4)


def test_classify_cuts_on_request(post: Callable[..., Any]) -> None:
    """The beginning is cut unless the request says otherwise."""
    error = post("/classify", {"input": LONG}, status=400)["error"]
    assert (error["type"], error["code"], error["param"]) == ("BadRequestError", 400, "input_tokens")

    def score(text: str, **options: Any) -> Any:
        return post("/classify", {"input": text, **options})["data"][0]["probs"]

    assert score(LONG, truncate_prompt_tokens=-1) == close(score(LONG[-256:]), abs=1e-4)
    assert score(LONG, truncate_prompt_tokens=20) == close(score(LONG[-20:]), abs=1e-4)
    assert post.headers["x-truncated-inputs"] == "0"  # type: ignore[attr-defined]
    right = score(LONG, truncate_prompt_tokens=20, truncation_side="right")
    assert post.headers["x-truncated-inputs"] == "1"  # type: ignore[attr-defined]
    assert right == close(score(LONG[:20]), abs=1e-4)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "give either input or messages"),
        ({"input": "a", "messages": conversation("b")}, "give either input or messages"),
        ({"input": []}, "there is nothing to score"),
        ({"input": ""}, "holds not a single token"),
        ({"input": [[]]}, "holds not a single token"),
        ({"input": [1, 5_000]}, "token id outside of 0 to 260"),
        ({"input": [True]}, "input"),
        ({"messages": []}, "no message with a text"),
        ({"messages": conversation("b"), "chat_template": "{{ x }}"}, "chat_template is refused"),
        ({"messages": conversation("b"), "add_special_tokens": True}, "the chat template writes them"),
        ({"input": "a", "truncate_prompt_tokens": 0}, "nothing would be left"),
        ({"input": "a", "truncate_prompt_tokens": -2}, "greater than or equal to -1"),
    ],
)
def test_classify_says_what_is_wrong(post: Callable[..., Any], body: dict[str, Any], message: str) -> None:
    if body.get("truncate_prompt_tokens") == 0:
        body = {**body, "input": LONG}
    error = post("/classify", body, status=400)["error"]
    assert message in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


def test_pooling(post: Callable[..., Any], texts: list[str], offline: list[float]) -> None:
    body = {"model": "m", "input": texts, "task": "classify", "use_activation": False, "encoding_format": "float"}
    answer = post("/pooling", body)
    assert answer["id"].startswith("pool-")
    assert [item["data"] for item in answer["data"]] == [[close(score, abs=1e-4)] for score in offline]
    assert {item["object"] for item in answer["data"]} == {"pooling"}
    (item,) = post("/pooling", {"input": texts[0], "encoding_format": "base64"})["data"]
    assert struct.unpack("<f", base64.b64decode(item["data"]))[0] == close(offline[0], abs=1e-4)
    assert "task must be" in post("/pooling", {"input": "a", "task": "token_classify"}, status=400)["error"]["message"]


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize(
    "names", [("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents"), ("queries", "items")]
)
def test_score(post: Callable[..., Any], offline: list[float], path: str, names: tuple[str, str]) -> None:
    """One against several, as many against as many, one against one."""
    first, second = names
    answer = post(path, {"model": "m", first: QUESTION, second: ANSWERS})
    assert answer["id"].startswith("embd-")
    assert [item["score"] for item in answer["data"]] == close(offline, abs=1e-4)
    assert [(item["index"], item["object"]) for item in answer["data"]] == [(0, "score"), (1, "score"), (2, "score")]
    several = post(path, {first: [QUESTION] * 3, second: ANSWERS, "use_activation": True})["data"]
    assert [item["score"] for item in several] == close([sigmoid(score) for score in offline], abs=1e-4)
    (single,) = post(path, {first: QUESTION, second: ANSWERS[1]})["data"]
    assert single["score"] == close(offline[1], abs=1e-4)


def test_score_says_what_is_wrong(post: Callable[..., Any]) -> None:
    error = post("/score", {"text_1": ["a", "b"], "text_2": ["c"]}, status=400)["error"]
    assert error["message"] == "2 texts against 1: expected one against several, or as many as there are"
    assert "at least one text" in post("/score", {"text_1": [], "text_2": "c"}, status=400)["error"]["message"]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_vllm_rerank(post: Callable[..., Any], offline: list[float], path: str) -> None:
    answer = post(path, {"model": "m", "query": QUESTION, "documents": ANSWERS, "top_n": 0})
    assert set(answer) == {"id", "model", "usage", "results"}
    order = sorted(range(3), key=lambda index: -offline[index])
    assert [item["index"] for item in answer["results"]] == order
    assert [item["relevance_score"] for item in answer["results"]] == close([offline[i] for i in order], abs=1e-4)
    assert answer["results"][0]["document"] == {"text": ANSWERS[order[0]], "multi_modal": None}
    (best,) = post(path, {"query": QUESTION, "documents": ANSWERS, "top_n": 1})["results"]
    assert best["index"] == order[0]
    assert "at least one text" in post(path, {"query": "a", "documents": []}, status=400)["error"]["message"]


# ------------------------------------------------------------------------------------------------------ SGLang


def test_sglang_classify(post: Callable[..., Any], texts: list[str], offline: list[float]) -> None:
    answer = post("/classify", {"model": "m", "text": texts})
    assert [item["embedding"] for item in answer] == [[close(score, abs=1e-4)] for score in offline]
    assert post("/classify", {"text": texts[0]})["embedding"] == [close(offline[0], abs=1e-4)]
    assert post("/classify", {"text": []}, status=400)["error"]["message"] == "there is nothing to score"


def test_sglang_v1_classify(post: Callable[..., Any], texts: list[str], offline: list[float]) -> None:
    """Probabilities, unless the request wants the raw score."""
    (data,) = post("/v1/classify", {"model": "m", "input": texts[0]})["data"]
    assert data["probs"] == [close(sigmoid(offline[0]), abs=1e-4)]
    (data,) = post("/v1/classify", {"model": "m", "input": texts[0], "use_activation": False})["data"]
    assert data["probs"] == [close(offline[0], abs=1e-4)]


def test_sglang_embeddings(post: Callable[..., Any], texts: list[str], offline: list[float]) -> None:
    answer = post("/v1/embeddings", {"model": "m", "input": texts[:2]})
    assert [item["embedding"][-1] for item in answer["data"]] == close(offline[:2], abs=1e-4)
    assert set(answer) == {"object", "model", "data", "usage"}


# ------------------------------------------------------------------------------------ text-embeddings-inference


def test_predict(post: Callable[..., Any], texts: list[str], offline: list[float]) -> None:
    """One text; a flat list of two, which is a pair; a batch of texts and pairs."""
    single = post(
        "/predict", {"inputs": texts[0], "truncate": None, "truncation_direction": "right", "raw_scores": True}
    )
    assert single == [{"score": close(offline[0], abs=1e-4), "label": "LABEL_0"}]
    pair = post("/predict", {"inputs": [QUESTION, ANSWERS[1]], "raw_scores": True})
    assert pair == [{"score": close(offline[1], abs=1e-4), "label": "LABEL_0"}]
    batch = post("/predict", {"inputs": [[texts[0]], [QUESTION, ANSWERS[2]]]})
    assert batch == [
        [{"score": close(sigmoid(offline[0]), abs=1e-4), "label": "LABEL_0"}],
        [{"score": close(sigmoid(offline[2]), abs=1e-4), "label": "LABEL_0"}],
    ]


def test_predict_cuts_on_request(post: Callable[..., Any]) -> None:
    assert post("/predict", {"inputs": LONG}, status=422) == {
        "error": "the input has 360 tokens, the limit is 256",
        "error_type": "Validation",
    }

    def score(text: str, **options: Any) -> float:
        return float(post("/predict", {"inputs": text, "raw_scores": True, **options})[0]["score"])

    assert score(LONG, truncate=True) == close(score(LONG[:256]), abs=1e-4)
    left = score(LONG, truncate=True, truncation_direction="Left")
    assert post.headers["x-truncated-inputs"] == "1"  # type: ignore[attr-defined]
    assert left == close(score(LONG[-256:]), abs=1e-4)


def test_predict_says_what_is_wrong(post: Callable[..., Any]) -> None:
    assert post("/predict", {"inputs": []}, status=400)["error_type"] == "Empty"
    assert post("/predict", {"inputs": [["a", "b", "c"]]}, status=422)["error"].startswith("an input has 3 texts")
    assert post("/predict", {}, status=422) == {"error": "inputs: Field required", "error_type": "Validation"}


def test_tei_rerank(post: Callable[..., Any], offline: list[float]) -> None:
    order = sorted(range(3), key=lambda index: -offline[index])
    answer = post("/rerank", {"query": QUESTION, "texts": ANSWERS, "raw_scores": True, "return_text": True})
    assert answer == [
        {"index": index, "score": close(offline[index], abs=1e-4), "text": ANSWERS[index]} for index in order
    ]
    answer = post("/rerank", {"query": QUESTION, "texts": ANSWERS, "truncate": None})
    assert answer == [{"index": index, "score": close(sigmoid(offline[index]), abs=1e-4)} for index in order]
    assert post("/rerank", {"query": QUESTION, "texts": []}, status=400)["error_type"] == "Empty"
    assert set(post("/rerank", {"texts": ["a"]}, status=422)) == {"error", "error_type"}
    assert set(post("/rerank", {"documents": ["a"]}, status=400)) == {"error"}


# ----------------------------------------------------------------------------------------------- LLaMA-Factory


def test_score_evaluation(post: Callable[..., Any], texts: list[str], offline: list[float]) -> None:
    answer = post("/v1/score/evaluation", {"model": "model", "messages": texts, "max_length": None})
    assert answer["id"].startswith("scoreval-")
    assert (answer["object"], answer["model"]) == ("score.evaluation", "model")
    assert answer["scores"] == close(offline, abs=1e-4)
    assert post("/v1/score/evaluation", {"model": "m", "messages": []}, status=400) == {"detail": "Invalid request"}
    assert post("/v1/score/evaluation", {"model": "m", "messages": [LONG]}, status=400) == {
        "detail": "the input has 360 tokens, the limit is 256"
    }
    cut = post("/v1/score/evaluation", {"messages": [LONG], "max_length": 30})["scores"]
    assert cut == close(post("/v1/score/evaluation", {"messages": [LONG[:30]]})["scores"], abs=1e-4)


# ------------------------------------------------------------------------------------------- what all have alike


def test_a_text_that_begins_with_bos_gets_no_second_one(scorer: Scorer) -> None:
    """Clients that render the template send its BOS, and tokenizers put one in front of every text."""
    from tiny_models import byte_tokenizer
    from tokenizers import processors

    from xrlhf.serving.inputs import InputEncoder, RawText

    tokenizer = byte_tokenizer()
    tokenizer.bos_token = "<s>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    encoder = InputEncoder(tokenizer, max_length=50, vocab_size=300)
    counted = [
        encoder.encode([RawText(text, add_special_tokens=special)]).num_tokens[0][0]
        for text, special in (("ab", True), ("<s>ab", True), ("ab", False), ("<s>ab", False))
    ]
    assert counted == [3, 3, 2, 3]


def test_texts_tokenised_together_are_those_tokenised_alone(scorer: Scorer, texts: list[str]) -> None:
    """What they share is tokenised once; text that no control token ends, and text without any, is as it was."""
    from xrlhf.serving.inputs import InputEncoder, RawText

    encoder = InputEncoder(scorer.encoder.tokenizer, max_length=256, vocab_size=260)
    asked = [RawText(text) for text in [*texts, texts[0], texts[0][:-8], "no roles", "É 🙂<|im_start|>"]]
    together = encoder.encode(asked)
    for one, group, lengths in zip(asked, together.groups, together.num_tokens, strict=True):
        alone = encoder.encode([one])
        assert alone.num_tokens == [lengths]
        assert [*group.prompt_ids, *group.response_ids[0]] == scorer.encoder.tokenizer(one.text)["input_ids"]
        assert [*alone.groups[0].prompt_ids] == [*group.prompt_ids]


def test_text_pairs_without_a_template_are_joined(scorer: Scorer, serving: Callable[..., Any]) -> None:
    import copy

    tokenizer = copy.deepcopy(scorer.encoder.tokenizer)
    tokenizer.chat_template = None
    plain = Scorer(scorer.model, tokenizer, scorer.device)
    client = serving(model=ServedModel(plain, ModelSettings(path="m")))
    (data,) = client.post("/score", json={"text_1": "a b", "text_2": " c"}).json()["data"]
    assert [[data["score"]]] == plain.score([Group("a b", (" c",))])
    error = client.post("/v1/rewards", json={"inputs": [{"prompt": "a", "response": "b"}]})
    assert error.status_code == 422
    assert "has no chat template" in error.json()["error"]["message"]
