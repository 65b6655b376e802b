"""Scores an exported InternLM2 reward model with whichever transformers runs this: a script, not a test.

Usage: python other_transformers.py FOLDER CONVERSATIONS.json. Needs no xrlhf; prints a JSON object.
"""

import json
import sys

import torch
import transformers
from transformers import AutoModel, AutoTokenizer


def main(folder: str, file: str) -> None:
    with open(file, encoding="utf-8") as lines:
        conversations = json.load(lines)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, torch_dtype=torch.float32, trust_remote_code=True).eval()
    result = {
        "version": transformers.__version__,
        "class": type(model).__name__,
        "module": type(model).__module__,
        "names": sorted(model.state_dict()),
        "alone": [model.get_score(tokenizer, conversation) for conversation in conversations],
        "together": model.get_scores(tokenizer, conversations),
        "one": model.get_scores(tokenizer, conversations[:1]),
        "none": model.get_scores(tokenizer, []),
        "rank": model.rank(tokenizer, conversations),
        "rank_of_one": model.rank(tokenizer, conversations[:1]),
        "rank_with_scores": model.rank(tokenizer, conversations, return_logits=True),
        "compare": model.compare(tokenizer, conversations[0], conversations[1]),
        "compare_with_scores": model.compare(tokenizer, conversations[0], conversations[1], return_logits=True),
        "imported": sorted(name for name in sys.modules if name.split(".")[0] == "xrlhf"),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
