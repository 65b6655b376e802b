"""A stand-in for OpenRLHF's ``serve_rm``: its design, without its package.

What it has of it (OpenRLHF, openrlhf/cli/serve_rm.py): FastAPI with one ``async def`` handler that calls the model
itself, so requests are computed one after another and nothing else is answered meanwhile; all queries of a request in
one batch, padded on the left to the longest; truncation without a word; positions counted from the attention mask; the
score read at the last token; ``rewards``, ``scores`` and ``extra_logs`` in the answer.

What differs: a plain ``AutoModelForSequenceClassification`` in place of its own class, since the weights have to be the
same on both sides; torch's fused attention, which is faster than the eager one it uses without flash-attn; no logging.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from job import read_job
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def main(job_file: str) -> None:
    """Serve as the job says, and print a line once the model is loaded."""
    job = read_job(job_file)
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    model = AutoModelForSequenceClassification.from_pretrained(
        job["model"], dtype=getattr(torch, job["dtype"]), attn_implementation="sdpa"
    )
    model = model.to(job["device"]).eval()
    app = FastAPI()

    @app.post("/get_reward")
    async def get_reward(request: Request) -> dict[str, Any]:
        queries = (await request.json())["query"]
        batch = tokenizer(
            queries,
            return_tensors="pt",
            add_special_tokens=False,
            max_length=job["max_length"],
            padding=True,
            truncation=True,
        ).to(job["device"])
        positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        with torch.no_grad():
            scores = model(**batch, position_ids=positions, use_cache=False).logits[:, 0].float().tolist()
        return {"rewards": scores, "scores": scores, "extra_logs": {"dummy_scores": scores}}

    print(f"ready: serve_rm at http://127.0.0.1:{job['port']}", flush=True)
    uvicorn.run(app, host="127.0.0.1", port=job["port"], log_level="warning")


if __name__ == "__main__":
    main(sys.argv[1])
