from __future__ import annotations

from typing import Any

import pytest
from mmengine.config import Config

from xrlhf.config.secrets import is_secret, mask_secrets

VALUE = "hf_abcdefgh"


@pytest.mark.parametrize(
    "key",
    [
        "token", "hub_token", "HF_TOKEN", "hfToken", "access_token", "auth-token", "secret", "client_secret",
        "secret_name", "token_secret", "password", "db_password", "passwd", "passphrase", "credentials", "api_key",
        "apiKey", "apikey", "OPENAI_API_KEY", "access_key", "aws_access_key_id", "private_key", "api_keys",
        "wandb.api.key",
    ],
)  # fmt: skip
def test_secret_keys(key: str) -> None:
    assert is_secret(key, VALUE)


@pytest.mark.parametrize(
    "key",
    [
        "tokenizer", "num_tokens", "token_budget", "reward_token", "max_tokens", "end_token", "pad_token", "eos_token",
        "token_type", "token_id", "tokens", "step_token", "key", "keys", "metric_key", "key_indicator", "secretary",
        "prompt_key", "custom_keys", "detokenize", "path",
    ],
)  # fmt: skip
def test_keys_that_only_look_like_it(key: str) -> None:
    assert not is_secret(key, VALUE)


def test_a_special_token_is_no_secret_whatever_its_key() -> None:
    for value in ("<|im_end|>", "</s>", "[UNUSED_TOKEN_130]", " <sep>"):
        assert not is_secret("token", value)
        assert not is_secret("closing_token", value)
        assert is_secret("password", value)


@pytest.mark.parametrize("value", ["", None, 5, True, {"a": 1}])
def test_only_strings_with_text_are_secrets(value: Any) -> None:
    assert not is_secret("password", value)


def test_mask_secrets_at_any_depth_and_wherever_the_value_recurs() -> None:
    recipe = {
        "hub_token": VALUE,
        "api_keys": ["first-key", "second-key"],
        "pin": {"password": "1234", "tokenizer": "gpt2", "password_length": 4},
        "headers": [("Authorization", f"Bearer {VALUE}")],
        "steps": "1234 steps",
    }
    assert mask_secrets(recipe) == {
        "hub_token": "***",
        "api_keys": ["***", "***"],
        "pin": {"password": "***", "tokenizer": "gpt2", "password_length": 4},
        "headers": [("Authorization", "Bearer ***")],
        # A secret of fewer than eight characters is not looked for elsewhere: it would mask ordinary text.
        "steps": "1234 steps",
    }
    assert recipe["hub_token"] == VALUE
    assert mask_secrets(Config(recipe)) == mask_secrets(recipe)
