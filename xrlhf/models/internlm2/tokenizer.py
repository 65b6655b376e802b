"""InternLM2's tokenizer, read from its sentencepiece file without the code that comes with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges, import_protobuf
from transformers.utils import cached_file

from xrlhf.errors import ModelError, error_line

__all__ = ["TOKENIZER_CLASSES", "read_internlm2_tokenizer"]

TOKENIZER_CLASSES = ("InternLM2Tokenizer", "InternLM2TokenizerFast")
"""What ``tokenizer_config.json`` calls them."""

_BPE = 2
_CONTROL, _USER_DEFINED = 3, 4
_MARK = "▁"


def read_internlm2_tokenizer(
    location: str, settings: dict[str, Any], *, revision: str | None = None
) -> PreTrainedTokenizerFast:
    """The tokenizer of a published InternLM2 directory.

    ``tokenizer.json`` is taken where there is one, and else built from ``tokenizer.model``. Tokens that
    ``tokenizer_config.json`` gives an id of the sentencepiece vocabulary take the name of the piece there, as
    ``<|im_start|>`` does.

    Args:
        location: A directory or a hub name.
        settings: Its ``tokenizer_config.json``.
        revision: Commit, tag or branch on the hub.

    Raises:
        ModelError: Neither file is there, or ``tokenizer.model`` is none that can be converted.
    """
    if _file(location, "tokenizer.json", revision) is not None:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(location, revision=revision or "main")
        # Names code that nobody is going to run.
        tokenizer.init_kwargs.pop("auto_map", None)
        return tokenizer
    spm = _file(location, "tokenizer.model", revision)
    if spm is None:
        raise ModelError(
            f"{location!r} has an InternLM2 tokenizer but neither tokenizer.model nor tokenizer.json: put one of them "
            "there"
        )
    names = {name: _text(settings.get(name, default)) for name, default in _DEFAULTS.items()}
    backend = _convert(spm, settings.get("added_tokens_decoder") or {}, [name for name in names.values() if name])
    _put_around(backend, names, settings)
    more = [_text(token) for token in settings.get("additional_special_tokens") or ()]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **names,
        extra_special_tokens=more,
        model_max_length=settings.get("model_max_length"),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _template(location, settings, revision)
    return tokenizer


_DEFAULTS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}


def _file(location: str, name: str, revision: str | None) -> Path | None:
    found = cached_file(location, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


def _text(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _template(location: str, settings: dict[str, Any], revision: str | None) -> str | None:
    file = _file(location, "chat_template.jinja", revision)
    return settings.get("chat_template") if file is None else file.read_text(encoding="utf-8")


def _convert(spm: Path, added: dict[str, Any], special: list[str]) -> Tokenizer:
    """A sentencepiece BPE model as the same one of ``tokenizers``."""
    proto = import_protobuf().ModelProto()
    try:
        proto.ParseFromString(spm.read_bytes())
    except Exception as error:
        raise ModelError(f"{spm} is no sentencepiece model: {error_line(error)}") from error
    if proto.trainer_spec.model_type != _BPE or not proto.pieces:
        raise ModelError(f"{spm} holds no BPE model: an InternLM2 tokenizer is one")
    if proto.normalizer_spec.remove_extra_whitespaces:
        raise ModelError(
            f"{spm} removes extra white space, which no InternLM2 tokenizer does: save the tokenizer as tokenizer.json"
        )
    wanted = {int(index): AddedToken(**_fields(token)) for index, token in added.items()}
    for index, piece in enumerate(proto.pieces):
        if piece.type in (_CONTROL, _USER_DEFINED) or piece.piece in special:
            control = piece.type != _USER_DEFINED
            wanted.setdefault(index, AddedToken(piece.piece, normalized=False, special=control))
    scores = {
        wanted[index].content if index in wanted else piece.piece: piece.score
        for index, piece in enumerate(proto.pieces)
    }
    if len(scores) != len(proto.pieces):
        raise ModelError(
            f"{spm.parent / 'tokenizer_config.json'}: added_tokens_decoder names a token as another piece of "
            "tokenizer.model is called: the two files do not belong together"
        )
    vocab = {piece: index for index, piece in enumerate(scores)}
    backend = Tokenizer(
        models.BPE(
            vocab=vocab,
            # Sentencepiece merges what gives the piece of the highest score first.
            merges=generate_merges(vocab, scores, skip_tokens={token.content for token in wanted.values()}),
            unk_token=proto.trainer_spec.unk_piece,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps: list[Any] = [normalizers.Prepend(_MARK)] if proto.normalizer_spec.add_dummy_prefix else []
    if proto.normalizer_spec.precompiled_charsmap:
        steps.insert(0, normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap))
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _MARK)])
    parts: list[Any] = [decoders.Replace(_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if proto.normalizer_spec.add_dummy_prefix:
        parts.append(decoders.Strip(content=" ", left=1))
    backend.decoder = decoders.Sequence(parts)
    backend.add_tokens([wanted[index] for index in sorted(wanted)])
    for index, token in wanted.items():
        if (found := backend.token_to_id(token.content)) != index:
            raise ModelError(
                f"{spm.parent / 'tokenizer_config.json'}: added_tokens_decoder gives {token.content!r} the id {index}, "
                f"but beside tokenizer.model it gets {found}: the two files do not belong together"
            )
    return backend


def _fields(token: dict[str, Any]) -> dict[str, Any]:
    known = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return {name: token[name] for name in known if name in token}


def _put_around(backend: Tokenizer, names: dict[str, str | None], settings: dict[str, Any]) -> None:
    """BOS before every text and EOS behind it, as the settings say; by default BOS alone."""
    begin = names["bos_token"] if settings.get("add_bos_token", True) else None
    end = names["eos_token"] if settings.get("add_eos_token", False) else None
    if begin or end:
        backend.post_processor = processors.TemplateProcessing(
            single=" ".join(part for part in (begin, "$A", end) if part),
            special_tokens=[(token, backend.token_to_id(token)) for token in (begin, end) if token],
        )
