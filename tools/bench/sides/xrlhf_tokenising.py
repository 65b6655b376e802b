"""xrlhf building its table of token ids on a benchmark's job."""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from pathlib import Path

from job import cpu_seconds, read_job, write_result


def main(job_file: str) -> None:
    """Build the table as the job says and write what was measured."""
    # Worker processes load this file again: what they need of it is nothing.
    import numpy as np

    from xrlhf.data.encoding import GroupEncoder
    from xrlhf.data.map_fns import conversation_pair_map_fn
    from xrlhf.data.sources import open_source
    from xrlhf.data.table import build_table
    from xrlhf.models import load_tokenizer

    job = read_job(job_file)
    shutil.rmtree(job["scratch"], ignore_errors=True)
    tokenizer = load_tokenizer(job["model"])
    began, cpu_before = time.perf_counter(), cpu_seconds()
    table = build_table(
        open_source(job["data"]),
        conversation_pair_map_fn,
        GroupEncoder(tokenizer, max_length=job["max_length"]),
        cache_dir=Path(job["scratch"]),
        num_workers=job["processes"],
    )
    seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu_before
    digest = hashlib.blake2b(digest_size=16)
    lengths = []
    for index in range(min(job["compared"], len(table))):
        group = table[index]
        sides = [np.concatenate([group.prompt_ids, ids]) for ids in group.response_ids]
        lengths.append([len(ids) for ids in sides])
        for ids in sides:
            digest.update(ids.tobytes())
    result = {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "load_seconds": 0.0,
        "num_rows": len(table),
        "lengths": lengths,
        "digest": digest.hexdigest(),
    }
    shutil.rmtree(job["scratch"])
    write_result(job, result)


if __name__ == "__main__":
    main(sys.argv[1])
