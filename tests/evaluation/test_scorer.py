from __future__ import annotations

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import CONVERSATION, byte_tokenizer, tiny_backbone
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from xrlhf.data.encoding import GroupEncoder
from xrlhf.data.reasons import Reason, RowError
from xrlhf.devices import CpuDevice
from xrlhf.errors import DataError, ModelError
from xrlhf.evaluation.scorer import Scorer
from xrlhf.export import save_reward_model
from xrlhf.models.reward_model import RewardModel
from xrlhf.models.tokenizer import prepare_tokenizer
from xrlhf.structures import Conversation, Group

ANSWERS = ["Five.", "It is 5.", "I do not know, ask somebody else.", "5"]


def group_of(question: str, answers: list[str]) -> Group:
    return Group([{"role": "user", "content": question}], tuple([{"role": "assistant", "content": a}] for a in answers))


GROUPS = [
    group_of("What is 2 + 3?", ANSWERS[:2]),
    group_of("What is 1 + 1? " * 3, ANSWERS[2:3]),
    group_of("?", ANSWERS),
    Group("", ("Plain text, scored as it is.", "Other text.")),
    group_of("What is 2 + 3?", ["same", "same"]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported reward model of 96 positions."""
    out = tmp_path_factory.mktemp("scorer") / "reward_hf"
    tokenizer = prepare_tokenizer(byte_tokenizer(), ending="<|reward|>")
    model = RewardModel(tiny_backbone(vocab_size=260, max_position_embeddings=128), tokenizer=tokenizer)
    save_reward_model(model, tokenizer, out)
    return out


def scores_by_transformers(folder: Path, groups: list[Group]) -> list[list[float]]:
    """Each conversation alone, through the classes and the template of the exported directory."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def score(conversation: Conversation) -> float:
        if isinstance(conversation, str):
            ids = [*tokenizer(conversation)["input_ids"], tokenizer.eos_token_id]
        else:
            ids = tokenizer(tokenizer.apply_chat_template(conversation, tokenize=False))["input_ids"]
        with torch.no_grad():
            return model(torch.tensor([ids])).logits.item()

    return [[score(conversation) for conversation in group.conversations()] for group in groups]


@pytest.mark.parametrize("token_budget", [1, 200, 16384])
def test_scores_are_those_of_transformers_in_order(folder: Path, token_budget: int) -> None:
    """Groups of one to four responses of mixed lengths, one group at a time, some together, all together."""
    scorer = Scorer.from_pretrained(str(folder), device=CpuDevice(), token_budget=token_budget)
    scores = scorer.score(GROUPS)
    for got, wanted in zip(scores, scores_by_transformers(folder, GROUPS), strict=True):
        assert got == pytest.approx(wanted, abs=1e-5)
    assert len({round(score, 4) for row in scores if isinstance(row, list) for score in row}) == 10


def test_nothing_to_score(folder: Path) -> None:
    assert Scorer.from_pretrained(str(folder)).score([]) == []


def test_a_group_that_is_too_long_is_told_and_the_others_are_scored(folder: Path) -> None:
    """The model has 128 positions."""
    groups = [GROUPS[0], group_of("What? " * 40, ["Short."]), GROUPS[2]]
    scores = Scorer.from_pretrained(str(folder)).score(groups)
    too_long = scores[1]
    assert isinstance(too_long, RowError)
    assert too_long.reason is Reason.TOO_LONG
    assert "the limit is 128" in too_long.detail
    wanted = scores_by_transformers(folder, [GROUPS[0], GROUPS[2]])
    assert scores[0] == pytest.approx(wanted[0], abs=1e-5)
    assert scores[2] == pytest.approx(wanted[1], abs=1e-5)


def test_only_bad_groups(folder: Path) -> None:
    (result,) = Scorer.from_pretrained(str(folder)).score([group_of("What? " * 40, ["Short."])])
    assert isinstance(result, RowError)


@pytest.mark.parametrize("truncation", ["prompt", "end"])
def test_long_groups_can_be_cut(folder: Path, truncation: str) -> None:
    scorer = Scorer.from_pretrained(str(folder), truncation=truncation)  # type: ignore[arg-type]
    (scores,) = scorer.score([group_of("What? " * 40, ["Short."])])
    assert isinstance(scores, list)
    assert np.isfinite(scores).all()


def test_a_shorter_limit_can_be_asked_for(folder: Path) -> None:
    scorer = Scorer.from_pretrained(str(folder), max_length=40)
    assert [type(result) for result in scorer.score(GROUPS[:2])] == [RowError, RowError]


def test_a_longer_limit_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="max_length is 129, but the model reads at most 128 tokens"):
        Scorer.from_pretrained(str(folder), max_length=129)


def test_an_impossible_limit_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="max_length must be at least 2"):
        Scorer.from_pretrained(str(folder), max_length=0)


def test_a_window_is_no_limit() -> None:
    """A conversation longer than the window is scored as the model scores it alone."""
    backbone = tiny_backbone("mistral", sliding_window=20)
    plain = copy.deepcopy(backbone).eval()
    tokenizer = prepare_tokenizer(byte_tokenizer())
    scorer = Scorer(RewardModel(backbone).eval(), tokenizer, CpuDevice())
    assert scorer.encoder.max_length == 512
    group = group_of("What? " * 10, ["5"])
    (ids,) = scorer.encoder.encode_conversations(group.conversations())
    assert isinstance(ids, np.ndarray)
    assert len(ids) > 60
    with torch.no_grad():
        alone = plain(torch.from_numpy(ids).long()[None], use_cache=False).logits.item()
    assert scorer.score([group]) == [[pytest.approx(alone, rel=1e-5, abs=1e-5)]]


def test_scores_that_are_not_finite_are_refused() -> None:
    model = RewardModel(tiny_backbone()).eval()
    with torch.no_grad():
        model.hf_model.score.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="gives scores that are not finite: its weights are damaged"):
        Scorer(model, prepare_tokenizer(byte_tokenizer()), CpuDevice()).score(GROUPS[:1])


def test_half_precision_weights_give_float32_scores(folder: Path) -> None:
    rough = Scorer.from_pretrained(str(folder), dtype="bfloat16").score(GROUPS)
    for got, wanted in zip(rough, scores_by_transformers(folder, GROUPS), strict=True):
        assert got == pytest.approx(wanted, rel=0.05, abs=0.1)


def test_text_that_looks_like_control_tokens_is_text(folder: Path) -> None:
    """An answer cannot write the reward token itself."""
    scorer = Scorer.from_pretrained(str(folder))
    plain, forged = scorer.score([group_of("?", ["5"]), group_of("?", ["5<|reward|>"])])
    assert plain != forged
    encoder = GroupEncoder(AutoTokenizer.from_pretrained(folder), max_length=128)
    (ids,) = encoder.encode_conversations(group_of("?", ["5<|reward|>"]).conversations())
    assert isinstance(ids, np.ndarray)
    assert (ids == 260).sum() == 1


# ------------------------------------------------------------------------------------------------ loading


def test_a_language_model_is_refused(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = {k: v for k, v in tiny_backbone().config.to_dict().items() if k not in ("id2label", "label2id")}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="holds no score head: it is a language model, not a reward model"):
        Scorer.from_pretrained(str(tmp_path))


def test_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "iter_5.pth").write_bytes(b"")
    with pytest.raises(ModelError, match="convert it with 'xrlhf convert pth_to_hf' first"):
        Scorer.from_pretrained(str(tmp_path / "iter_5.pth"))


def test_a_directory_without_a_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(ModelError, match="no tokenizer could be loaded from"):
        Scorer.from_pretrained(str(tmp_path / "copy"))


def test_a_tokenizer_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    larger = byte_tokenizer()
    larger.add_tokens([f"word{i}" for i in range(10)])
    larger.save_pretrained(tmp_path / "copy")
    with pytest.raises(ModelError, match="ids up to 269 but the model embeds only 261 tokens"):
        Scorer.from_pretrained(str(tmp_path / "copy"))


def test_messages_need_a_template() -> None:
    scorer = Scorer(RewardModel(tiny_backbone()).eval(), prepare_tokenizer(byte_tokenizer(None)), CpuDevice())
    assert isinstance(scorer.score([GROUPS[3]])[0], list)
    with pytest.raises(ModelError, match="has no chat template"):
        scorer.score([Group(CONVERSATION[:1], (CONVERSATION[1:],))])
