"""Tokenizers ready for training: a pad token of their own, and a template that writes every conversation's end."""

from __future__ import annotations

import logging
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from xrlhf.errors import ModelError
from xrlhf.registry import TOKENIZERS

__all__ = ["load_tokenizer", "prepare_tokenizer", "template_with_ending"]

logger = logging.getLogger("xrlhf")

_PAD = "<|pad|>"


@TOKENIZERS.register_module()
def load_tokenizer(
    path: str,
    *,
    chat_template: str | None = None,
    ending: str | None = None,
    pad_token: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a directory or a hub name and prepare it.

    Args:
        path: A Hugging Face directory or a hub name.
        chat_template: A Jinja template, or the path of a file that holds one; the tokenizer's own if None.
        ending: See :func:`prepare_tokenizer`.
        pad_token: See :func:`prepare_tokenizer`.
        revision: Commit, tag or branch on the hub.
        trust_remote_code: Run the repository's own tokenizer code. Only for sources you trust.

    Raises:
        ModelError: Nothing loadable at ``path``, or an option that does not fit the tokenizer.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(f"no tokenizer could be loaded from {path!r}: {_first_line(error)}") from error
    if chat_template is not None:
        file = Path(chat_template).expanduser()
        is_file = len(chat_template) < 4096 and "\n" not in chat_template and file.is_file()
        tokenizer.chat_template = file.read_text(encoding="utf-8") if is_file else chat_template
        if not is_file and "{" not in chat_template:
            raise ModelError(f"chat_template {chat_template!r} is neither a file nor a Jinja template")
    return prepare_tokenizer(tokenizer, ending=ending, pad_token=pad_token)


def prepare_tokenizer(
    tokenizer: PreTrainedTokenizerBase, *, ending: str | None = None, pad_token: str | None = None
) -> PreTrainedTokenizerBase:
    """Make a tokenizer fit for reward modelling, in place.

    Sequence classification in ``transformers`` scores the last token that is not the pad token, so the pad token must
    be one that no conversation ends on. The ending becomes part of the chat template and travels with every export.

    Args:
        tokenizer: The tokenizer to change.
        ending: None leaves the template's own end; ``"eos"`` lets it end every conversation with EOS; any other text
            is a reward token, added to the vocabulary if it is not there.
        pad_token: A token to pad with; if None, the tokenizer's own unless that is EOS, else ``<|pad|>``.

    Returns:
        The same tokenizer. ``tokenizer.xrlhf_new_tokens`` lists the tokens that were added to its vocabulary.

    Raises:
        ModelError: The pad token is the end token, or an ending is asked for where there is no template or no EOS.
    """
    before = len(tokenizer)
    if pad_token is not None:
        tokenizer.add_special_tokens({"pad_token": pad_token})
    elif tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": _PAD})
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ModelError(
            f"pad token {tokenizer.pad_token!r} is the end token, so the token before the end would be scored: "
            "choose another pad_token"
        )
    if ending is not None:
        if tokenizer.chat_template is None:
            raise ModelError(f"ending={ending!r} needs a chat template, and the tokenizer has none: set chat_template")
        if ending == "eos":
            if tokenizer.eos_token is None:
                raise ModelError("ending='eos' but the tokenizer has no EOS token: name a reward token instead")
            ending = str(tokenizer.eos_token)
        elif ending not in tokenizer.get_vocab():
            tokenizer.add_special_tokens({"additional_special_tokens": [ending]}, replace_extra_special_tokens=False)
        if ending == tokenizer.pad_token:
            raise ModelError(f"ending {ending!r} is the pad token: choose another")
        tokenizer.chat_template = template_with_ending(tokenizer.get_chat_template(), ending)
    if tokenizer.chat_template is not None:
        _check_ending(tokenizer)
    tokenizer.padding_side = "right"
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.xrlhf_new_tokens = tokenizer.convert_ids_to_tokens(list(range(before, len(tokenizer))))
    return tokenizer


def template_with_ending(template: str, ending: str) -> str:
    """``template`` that writes ``ending`` behind every finished conversation, unless it is written there already.

    A template that already carries this ending is returned as it is.
    """
    marker = "{%- if not add_generation_prompt -%}{{ " + _quoted(ending) + " }}{%- endif -%}"
    if template.endswith(marker):
        return template
    # Jinja drops one newline at the very end of a source; it must not come back to life in the middle.
    body = template[:-1] if template.endswith("\n") else template
    # The text before the marker is kept as it is: '{%-' would strip white space the template writes itself.
    return body + marker.replace("{%- if", "{% if", 1)


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _check_ending(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    try:
        ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    except Exception as error:
        raise ModelError(f"the chat template cannot render one user and one assistant turn: {error}") from error
    if ids[-1] == tokenizer.pad_token_id:
        raise ModelError(
            f"the chat template ends conversations with the pad token {tokenizer.pad_token!r}, which scoring skips: "
            "set another pad_token"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
