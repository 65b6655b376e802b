"""Tokenizers ready for training: a pad token of their own, and a template that writes every conversation's end."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any, cast

from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from xrlhf.errors import ModelError, error_line
from xrlhf.models.internlm2.registration import register_internlm2
from xrlhf.models.internlm2.tokenizer import TOKENIZER_CLASSES, read_internlm2_tokenizer
from xrlhf.models.location import loading_error, pretrained_location
from xrlhf.models.templates import TEMPLATES, give_template
from xrlhf.registry import TOKENIZERS

__all__ = [
    "ending_id",
    "load_tokenizer",
    "prepare_tokenizer",
    "read_tokenizer",
    "set_chat_template",
    "set_ending",
    "template_with_ending",
]

logger = logging.getLogger("xrlhf")

_PAD = "<|pad|>"
_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py")
_GENERIC_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")


@TOKENIZERS.register_module()
def load_tokenizer(
    path: str,
    *,
    chat_template: str | None = None,
    ending: str | None = None,
    pad_token: str | None = None,
    revision: str | None = None,
    hub: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a directory or a hub name and prepare it.

    Args:
        path: A Hugging Face directory, a hub name, or a ``tokenizer.json``.
        chat_template: A Jinja template, the path of a file that holds one, or a name in
            :data:`xrlhf.models.templates.TEMPLATES` such as ``"chatml"``; the tokenizer's own if None.
        ending: See :func:`prepare_tokenizer`.
        pad_token: See :func:`prepare_tokenizer`.
        revision: Commit, tag or branch on the hub; its main branch if None.
        hub: ``"huggingface"`` or ``"modelscope"``; what ``XRLHF_HUB`` says, else Hugging Face, if None.
        trust_remote_code: Run the repository's own tokenizer code. Only for sources you trust.

    Raises:
        ModelError: Nothing loadable at ``path``, or an option that does not fit the tokenizer.
    """
    tokenizer = read_tokenizer(path, revision=revision, hub=hub, trust_remote_code=trust_remote_code)
    if chat_template is not None:
        set_chat_template(tokenizer, chat_template)
    return prepare_tokenizer(tokenizer, ending=ending, pad_token=pad_token)


def set_chat_template(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    """Give a tokenizer another chat template, in place.

    Args:
        tokenizer: The tokenizer to change.
        template: As ``chat_template`` of :func:`load_tokenizer`.

    Raises:
        ModelError: A file that cannot be read, or that holds no Jinja.
    """
    if template in TEMPLATES:
        give_template(tokenizer, template)
    else:
        tokenizer.chat_template = _read_template(template)


def read_tokenizer(
    path: str, *, revision: str | None = None, hub: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer at ``path`` as it is.

    Args:
        path: A Hugging Face directory, a hub name, or a ``tokenizer.json``.
        revision: Commit, tag or branch on the hub; its main branch if None.
        hub: ``"huggingface"`` or ``"modelscope"``; what ``XRLHF_HUB`` says, else Hugging Face, if None.
        trust_remote_code: Run the repository's own tokenizer code. Only for sources you trust.

    Raises:
        ModelError: Nothing loadable at ``path``.
    """
    file = Path(path).expanduser()
    location = (
        str(file)
        if _is_tokenizer_file(file)
        else pretrained_location(path, "tokenizer", revision=revision, hub=hub, only=_FILES)
    )
    try:
        if _is_tokenizer_file(file):
            return cast(PreTrainedTokenizerBase, PreTrainedTokenizerFast(tokenizer_file=location))
        settings = get_tokenizer_config(location, revision=revision)
        declared = settings.get("tokenizer_class")
        if declared in TOKENIZER_CLASSES:
            return read_internlm2_tokenizer(location, settings, revision=revision)
        register_internlm2()
        tokenizer = AutoTokenizer.from_pretrained(location, revision=revision, trust_remote_code=trust_remote_code)
        # For some model types AutoTokenizer overrules the files with a class of its own, which splits text otherwise.
        if declared in _GENERIC_CLASSES and type(tokenizer).__name__ not in _GENERIC_CLASSES:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(location, revision=revision or "main")
    except ModelError:
        raise
    except Exception as error:
        raise loading_error(error, "tokenizer", path, revision=revision, hub=hub) from error
    return cast(PreTrainedTokenizerBase, tokenizer)


def _is_tokenizer_file(path: Path) -> bool:
    return path.suffix == ".json" and path.is_file()


def _read_template(template_or_file: str) -> str:
    """The text of a template; only what holds no Jinja at all can be the name of a file."""
    if "{{" in template_or_file or "{%" in template_or_file:
        return template_or_file
    file = Path(template_or_file).expanduser()
    try:
        template = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ModelError(f"chat_template {template_or_file!r} is neither a file nor a Jinja template") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"chat_template {template_or_file!r} cannot be read: {error_line(error)}") from error
    if "{{" not in template and "{%" not in template:
        raise ModelError(f"chat_template {template_or_file!r} is a file without any Jinja in it")
    return template


def prepare_tokenizer(
    tokenizer: PreTrainedTokenizerBase, *, ending: str | None = None, pad_token: str | None = None
) -> PreTrainedTokenizerBase:
    """Make a tokenizer fit for reward modelling, in place.

    Sequence classification in ``transformers`` scores the last token that is not the pad token, so the pad token must
    be one that no conversation ends on. The ending becomes part of the chat template and travels with every export.

    With a chat template, the template alone decides how a conversation begins and ends: a BOS or EOS that the
    tokenizer would add by itself is switched off. So ``tokenizer(text)`` gives the ids of training for any rendered
    conversation, whether or not the caller thinks of ``add_special_tokens=False``, and no BOS is ever doubled.

    Args:
        tokenizer: The tokenizer to change.
        ending: None leaves the template's own end; ``"eos"`` lets it end every conversation with EOS; any other text
            is a reward token, added to the vocabulary if it is not there. A template that ends on that token already
            stays as it is.
        pad_token: A token to pad with; if None, the tokenizer's own unless that is EOS, else ``<|pad|>``.

    Returns:
        The same tokenizer. ``tokenizer.xrlhf_new_tokens`` lists the tokens that were added to its vocabulary.

    Raises:
        ModelError: The pad token is the end token, an ending is asked for where there is no template or no EOS, or
            the template cannot render a conversation.
    """
    before = set(tokenizer.get_vocab())
    if pad_token is not None:
        tokenizer.add_special_tokens({"pad_token": pad_token})
    elif tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        reason = "has no pad token" if tokenizer.pad_token_id is None else "pads with its end token"
        tokenizer.add_special_tokens({"pad_token": _PAD})
        logger.info("the tokenizer %s: it pads with %s from now on, id %d", reason, _PAD, tokenizer.pad_token_id)
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ModelError(
            f"pad token {tokenizer.pad_token!r} is the end token, so the token before the end would be scored: "
            "choose another pad_token"
        )
    if ending is not None:
        set_ending(tokenizer, ending)
    if tokenizer.chat_template is not None:
        _add_nothing_to_rendered_text(tokenizer)
        if _rendered_ids(tokenizer)[-1] == tokenizer.pad_token_id:
            raise ModelError(
                f"the chat template ends conversations with the pad token {tokenizer.pad_token!r}, which scoring "
                "skips: set another pad_token"
            )
    tokenizer.padding_side = "right"
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    vocabulary = tokenizer.get_vocab()
    earlier = list(getattr(tokenizer, "xrlhf_new_tokens", []))
    tokenizer.xrlhf_new_tokens = earlier + sorted(set(vocabulary) - before, key=vocabulary.__getitem__)
    return tokenizer


def set_ending(tokenizer: PreTrainedTokenizerBase, ending: str) -> None:
    """Let the chat template end every conversation with a token, in place.

    Args:
        tokenizer: One with a chat template.
        ending: ``"eos"`` or the token itself, which becomes a special token unless a text that names it gives it.

    Raises:
        ModelError: No template or no EOS, or the token cannot end a conversation.
    """
    if tokenizer.chat_template is None:
        raise ModelError(f"ending={ending!r} needs a chat template, and the tokenizer has none: set chat_template")
    token = ending
    if ending == "eos":
        if tokenizer.eos_token is None:
            raise ModelError("ending='eos' but the tokenizer has no EOS token: name a reward token instead")
        token = str(tokenizer.eos_token)
    elif not ending.strip():
        raise ModelError("ending must be 'eos' or a token, got blank text")
    elif not _is_one_token(tokenizer, ending):
        tokenizer.add_special_tokens({"extra_special_tokens": [ending]}, replace_extra_special_tokens=False)
    if token == tokenizer.pad_token:
        raise ModelError(f"ending {token!r} is the pad token: choose another")
    token_id = tokenizer.convert_tokens_to_ids(token)
    if _rendered_ids(tokenizer)[-1] != token_id:
        tokenizer.chat_template = template_with_ending(tokenizer.get_chat_template(), token)
    if _rendered_ids(tokenizer)[-1] != token_id:
        raise ModelError(f"ending {token!r} is not read back as one token at the end of a conversation: choose another")


def ending_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token that the chat template writes last, where a conversation is scored.

    Raises:
        ModelError: The template cannot render a conversation.
    """
    return _rendered_ids(tokenizer)[-1]


def _is_one_token(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether ``text`` is in the vocabulary and read as that token; pieces that are only left over are not."""
    index = tokenizer.get_vocab().get(text)
    return index is not None and list(tokenizer(text, add_special_tokens=False)["input_ids"]) == [index]


def template_with_ending(template: str, ending: str) -> str:
    """``template`` that writes ``ending`` behind every finished conversation.

    A template that this function has given the same ending before is returned as it is.
    """
    # '{%+' and the bare '{%' keep white space that the template itself writes at its end.
    marker = "{%+ if not add_generation_prompt -%}{{ " + _quoted(ending) + " }}{%- endif -%}"
    if template.endswith(marker):
        return template
    # Jinja drops one newline at the very end of a source; it must not come back to life in the middle.
    return re.sub(r"(\r\n|\r|\n)\Z", "", template) + marker


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


def _rendered_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a short conversation, as training reads it."""
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception as error:
        raise ModelError(
            f"the chat template cannot render one user and one assistant turn: {error_line(error)}"
        ) from error
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ModelError("the chat template renders one user and one assistant turn as nothing")
    return list(ids)


def _add_nothing_to_rendered_text(tokenizer: PreTrainedTokenizerBase) -> None:
    """Switch off what the tokenizer puts around a text by itself."""
    if not _adds_tokens(tokenizer):
        return
    backend = getattr(tokenizer, "backend_tokenizer", None)
    for flag in ("add_bos_token", "add_eos_token"):
        if getattr(tokenizer, flag, False):
            setattr(tokenizer, flag, False)
    if backend is not None and _adds_tokens(tokenizer):
        backend.post_processor = _without_added_tokens(json.loads(backend.to_str())["post_processor"])
    if _adds_tokens(tokenizer):
        raise ModelError(
            f"{type(tokenizer).__name__} puts tokens around every text, which cannot be switched off: set "
            "add_bos_token=false and add_eos_token=false in its tokenizer_config.json"
        )
    logger.info("the tokenizer adds no BOS or EOS by itself any more: its chat template writes all there is")


def _adds_tokens(tokenizer: PreTrainedTokenizerBase) -> bool:
    return list(tokenizer("x")["input_ids"]) != list(tokenizer("x", add_special_tokens=False)["input_ids"])


def _without_added_tokens(description: dict[str, Any]) -> processors.PostProcessor:
    """The post-processor of a tokenizer less the steps that add tokens; byte-level ones, which fix offsets, stay."""
    steps = description["processors"] if description["type"] == "Sequence" else [description]
    kept: list[processors.PostProcessor] = [
        processors.ByteLevel(
            add_prefix_space=step.get("add_prefix_space", True),
            trim_offsets=step.get("trim_offsets", True),
            use_regex=step.get("use_regex", True),
        )
        for step in steps
        if step["type"] == "ByteLevel"
    ]
    return processors.Sequence([*kept, processors.TemplateProcessing(single="$A", pair="$A $B:1")])
