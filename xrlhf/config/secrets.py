"""Which values of a recipe are secrets, and a recipe without them.

A value is a secret by its key. The key is cut into words (``hubApiKey`` and ``hub_api_key`` are hub, api, key), and
then a string is masked where

* a word is secret, password, passwd, passphrase, credential or apikey (singular or plural);
* the words hold access, api, auth, encryption, private, secret or signing right before key or keys;
* the last word is token (``hub_token``, ``token``), unless the word before it is one of the vocabulary
  (``reward_token``, ``pad_token``) or the value is written as a special token, between brackets (``<|end|>``,
  ``[CLS]``). ``tokens``, ``tokenizer``, ``num_tokens`` and ``token_budget`` do not end in the word token.

Wherever else a masked value of eight or more characters occurs in a string, that part is masked as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmengine.config import Config

__all__ = ["MASK", "is_secret", "mask_secrets"]

MASK = "***"

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_SECRET_WORD = re.compile(r"(secret|password|passwd|passphrase|credential|apikey)s?")
_KEY_KINDS = {"access", "api", "auth", "encryption", "private", "secret", "signing"}
_VOCABULARY = re.compile(
    "audio|begin|bos|boundary|chosen|cls|control|decoder|delimiter|end|eoc|eod|eom|eos|eot|extra|fake|fill|filler|first"
    "|forced|image|last|mask|new|next|pad|padding|per|placeholder|policy|prefix|previous|prompt|rejected|response|reward"
    "|score|sep|separator|special|start|step|stop|suffix|target|think|tool|turn|unk|unknown|value|video|vision|word"
)
_BRACKETED = re.compile(r"\s*(<.*>|\[.*\]|\{.*\}|\|.*\|)\s*", re.DOTALL)
_MIN_SEARCHED = 8


def is_secret(key: str, value: Any) -> bool:
    """True where ``value`` under ``key`` is a secret by the rule of this module.

    >>> is_secret("hub_token", "hf_x"), is_secret("reward_token", "<|reward|>"), is_secret("num_tokens", "many")
    (True, False, False)
    """
    if not isinstance(value, str) or not value:
        return False
    words = [word.lower() for word in _WORD.findall(key)]
    if any(_SECRET_WORD.fullmatch(word) for word in words):
        return True
    if any(first in _KEY_KINDS and second in ("key", "keys") for first, second in pairwise(words)):
        return True
    if words[-1:] != ["token"] or _BRACKETED.fullmatch(value):
        return False
    return len(words) == 1 or _VOCABULARY.fullmatch(words[-2]) is None


def mask_secrets(cfg: Config | Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a recipe, as plain dicts, with every secret replaced by ``***``."""
    plain = dict(cfg.items())
    secrets = sorted({s for s in _secrets_in(plain, "") if len(s) >= _MIN_SEARCHED}, key=len, reverse=True)
    masked: dict[str, Any] = _masked(plain, "", secrets)
    return masked


def _secrets_in(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for inner, item in value.items():
            yield from _secrets_in(item, str(inner))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _secrets_in(item, key)
    elif is_secret(key, value):
        yield value


def _masked(value: Any, key: str, secrets: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {inner: _masked(item, str(inner), secrets) for inner, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_masked(item, key, secrets) for item in value)
    if is_secret(key, value):
        return MASK
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, MASK)
    return value
