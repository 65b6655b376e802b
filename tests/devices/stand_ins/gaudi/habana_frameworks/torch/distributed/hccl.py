"""The process-group backend, which its import registers."""

from __future__ import annotations

from habana_frameworks import note

note("import hccl")


def initialize_distributed_hpu(world_size: int, rank: int, local_rank: int) -> tuple[int, int, int]:
    note("initialize_distributed_hpu", world_size, rank, local_rank)
    return world_size, rank, local_rank
