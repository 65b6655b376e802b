"""Texts cut at control tokens, so that what several texts share is tokenised once.

A fast tokenizer begins every text by taking out the added tokens that are matched before normalisation; whatever lies
between two of them is normalised, split and encoded on its own. A text may therefore be cut before any such token:
the ids of its pieces, put together, are the ids of the whole. Every piece but the first begins with its token, because
some tokenizers treat the very beginning of a text differently (Metaspace with ``prepend_scheme="first"``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain, cycle, pairwise

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from xrlhf.structures import as_ids

__all__ = ["encode_in_pieces", "encode_in_pieces_with_offsets", "pieces_of", "safe_cuts"]

_PROBES = ("a", " a ", "\n", "\n\nThe cat's 12 ", "  É你🙂", ".")


def safe_cuts(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Matches the tokens before which a text may be cut without a change of its ids.

    Returns:
        The pattern, to be used from left to right; None where the tokenizer is not known to allow any cut: one without
        a Rust backend, one whose class changes how texts are encoded, one with tokens that look at the text beside
        them, with dropout, or with special tokens that are split like text.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or tokenizer.split_special_tokens:
        return None
    if any(
        getattr(type(tokenizer), name, None) is not getattr(PreTrainedTokenizerFast, name, None)
        for name in ("__call__", "_encode_plus", "_batch_encode_plus")
    ):
        return None
    backend = tokenizer.backend_tokenizer
    tokens = [token for token in backend.get_added_tokens_decoder().values() if token.content and not token.normalized]
    if not tokens or any(token.lstrip or token.rstrip or token.single_word for token in tokens):
        return None
    if getattr(backend.model, "dropout", None):
        return None
    # All of them, the longest first, as the tokenizer itself looks for them: a token inside another one is no cut.
    contents = sorted((token.content for token in tokens), key=len, reverse=True)
    cuts = re.compile("|".join(map(re.escape, contents)))
    # What the structure cannot tell, a post-processor that adds to every text for one, an example may.
    probe = "".join(chain.from_iterable(zip(cycle(_PROBES), [*contents, *contents[::-1], "."], strict=False)))
    whole = tokenizer(probe, add_special_tokens=False, verbose=False)["input_ids"]
    (in_pieces,) = encode_in_pieces(tokenizer, [probe], cuts)
    return cuts if in_pieces.tolist() == whole else None


def pieces_of(text: str, cuts: re.Pattern[str]) -> list[str]:
    """``text`` cut before every match of ``cuts``; at least one piece, and joined they are the text."""
    places = [match.start() for match in cuts.finditer(text)]
    return [text[start:stop] for start, stop in pairwise(dict.fromkeys([0, *places, len(text)]))] or [text]


def encode_in_pieces(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], cuts: re.Pattern[str]
) -> list[np.ndarray]:
    """The ids of texts without any special tokens added, every distinct piece of all of them encoded once.

    Args:
        tokenizer: A fast tokenizer.
        texts: Any texts.
        cuts: What :func:`safe_cuts` says of the tokenizer.

    Returns:
        The ids of each text, (length,) int32.

    Raises:
        TypeError, UnicodeError: A text is none, or not valid Unicode.
    """
    cut = [pieces_of(text, cuts) for text in texts]
    distinct = list(dict.fromkeys(chain.from_iterable(cut)))
    # Offsets, which nobody asks for here, would cost a fifth of the time.
    encodings = _prepared(tokenizer).encode_batch_fast(distinct, add_special_tokens=False)
    ids = {piece: as_ids(encoding.ids) for piece, encoding in zip(distinct, encodings, strict=True)}
    return [np.concatenate([ids[piece] for piece in pieces]) for pieces in cut]


def encode_in_pieces_with_offsets(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], cuts: re.Pattern[str]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """As :func:`encode_in_pieces`, with the characters of every token.

    Returns:
        For each text its ids, (length,) int32, and offsets, (length, 2) int64: the first character of each token and
        the one after its last.
    """
    cut = [pieces_of(text, cuts) for text in texts]
    distinct = list(dict.fromkeys(chain.from_iterable(cut)))
    encodings = _prepared(tokenizer).encode_batch(distinct, add_special_tokens=False)
    known = {
        piece: (as_ids(encoding.ids), np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2))
        for piece, encoding in zip(distinct, encodings, strict=True)
    }
    results = []
    for pieces in cut:
        begins = np.cumsum([0, *map(len, pieces)])
        ids = np.concatenate([known[piece][0] for piece in pieces])
        offsets = [known[piece][1] + begin for piece, begin in zip(pieces, begins, strict=False)]
        results.append((ids, np.concatenate(offsets)))
    return results


def _prepared(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    backend = tokenizer.backend_tokenizer
    # Settings may be left over from the tokenizer's last call, which sets them anew every time as well.
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = False
    return backend
