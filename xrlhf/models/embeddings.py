"""The embeddings of a model, and rows for tokens it did not have."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

__all__ = ["embedding_name", "embedding_weight", "grow_embeddings"]


def embedding_weight(model: PreTrainedModel) -> Tensor:
    """(vocabulary, H): the input embeddings of a model."""
    return cast(Tensor, model.get_input_embeddings().weight)


def embedding_name(model: PreTrainedModel) -> str:
    """The dotted name of a model's input embeddings, such as ``"model.embed_tokens"``."""
    embeddings = model.get_input_embeddings()
    return next(name for name, module in model.named_modules() if module is embeddings)


def grow_embeddings(model: PreTrainedModel, rows: int) -> None:
    """Give the embeddings ``rows`` rows, and the output layer of a language model too.

    Each new row is the mean of those there were.
    """
    before = len(embedding_weight(model))
    model.resize_token_embeddings(rows, mean_resizing=False)
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    with torch.no_grad():
        for weight in {id(table.weight): table.weight for table in tables if table is not None}.values():
            weight[before:] = weight[:before].mean(dim=0)
