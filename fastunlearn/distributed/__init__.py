"""Exact Top-K and Random-k over parameters that are spread over processes.

Which parameters are selected, and the noise that each gets, depend on the flat index in the full
model alone. So any sharding gives the bits of one process: `torch.distributed` carries the counts,
and every rank changes its own elements with the operations that a single process uses.
"""

from fastunlearn.distributed.agree import PeerError, PlanError
from fastunlearn.distributed.operations import Perturber, perturb_
from fastunlearn.distributed.scores import score
from fastunlearn.distributed.selection import ShardSelection, select
from fastunlearn.distributed.shards import Shard

__all__ = [
    "PeerError",
    "Perturber",
    "PlanError",
    "Shard",
    "ShardSelection",
    "perturb_",
    "score",
    "select",
]
