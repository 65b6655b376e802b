"""One of two processes whose memory is measured; test_measured starts it and reads what it writes.

Arguments: rank, world size, port, folder. ``jobs.json`` in the folder lists what to train; writes ``rank_N.json``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measuring import LLAMA_14M, backbone, groups_of, measured_peak

from xrlhf.devices import CpuDevice
from xrlhf.engine.launch import Ranks, leave_process_group, start_process_group


def main() -> None:
    rank, world_size, port, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    os.environ["MASTER_PORT"] = port
    start_process_group(CpuDevice(), Ranks(rank, world_size, rank, "pytorch"), timeout_seconds=120)
    found, began = {}, time.perf_counter()
    for job in json.loads((folder / "jobs.json").read_text(encoding="utf-8")):
        if rank == 0:
            print(f"{time.perf_counter() - began:.0f} s: {job['name']}", flush=True)
        found[job["name"]] = measured_peak(
            {"backbone": backbone(LLAMA_14M)},
            groups_of(16, *job["lengths"]),
            strategy=job["strategy"],
            options=job["options"],
            groups_per_step=job["groups_per_step"],
            token_budget=job["token_budget"],
            launcher="pytorch",
        )
    (folder / f"rank_{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    leave_process_group()


if __name__ == "__main__":
    main()
