"""What all ranks do together: compare plans, add up counts, and fail as one.

Every collective carries word of a failure. So an exception on one rank is an error on all of them,
at their next collective and before anything is written; a dead or hanging rank is one after the
timeout of the process group.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_WORDS = 4  # of 64 bits: a SHA-256


class PlanError(ValueError):
    """The ranks were not asked for the same thing."""


class PeerError(RuntimeError):
    """Another rank has failed; its own error says why."""


class Together:
    """The collectives of one call.

    Args:
        op: name of the operation, for messages.
        group: the process group; None for the default one.
        device: of the tensors that are sent.

    Attributes:
        rank, size: of this process in the group, and of the group.
        calls: number of collectives so far.
        bytes: number of bytes that this rank has given to them.
    """

    def __init__(self, op: str, group: dist.ProcessGroup | None, device: torch.device) -> None:
        self.op, self.group, self.device = op, group, device
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.calls = self.bytes = 0

    def plan(self, make: Callable[[], tuple[dict[str, Any], int]]) -> tuple[int, int]:
        """Compare plans.

        Args:
            make: gives what all ranks must have in common, and the number of elements that this
                rank owns.

        Returns:
            Number of elements that all ranks own, and 64 random bits that all ranks share.

        Raises:
            PlanError: plans differ; every rank raises it.
            PeerError: another rank has failed.
        """
        words, failure = [0] * _WORDS, None
        owned, draw = 0, secrets.randbits(63)
        try:
            plan, owned = make()
            text = json.dumps(plan, sort_keys=True).encode()
            digest = hashlib.sha256(text).digest()
            words = [
                int.from_bytes(digest[8 * i : 8 * i + 8], "little", signed=True)
                for i in range(_WORDS)
            ]
        except Exception as error:
            failure = error
        mine = torch.tensor([int(failure is not None), owned, draw, *words], device=self.device)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        self._count(mine)
        dist.all_gather(found, mine, group=self.group)
        rows = torch.stack(found).tolist()
        self._refuse(failure, [i for i, row in enumerate(rows) if row[0]])
        different = [i for i, row in enumerate(rows) if row[3:] != rows[0][3:]]
        if different:
            raise PlanError(
                f"{self.op}: all ranks must have the same plan (names, shapes, dtypes, placements, "
                f"strategy, seed and step), got another on ranks {different} than on rank 0"
            )
        return sum(row[1] for row in rows), rows[0][2]

    def sum(self, shape: tuple[int, ...], make: Callable[[], Tensor]) -> Tensor:
        """Add up a tensor of all ranks.

        Args:
            shape: of the tensor, the same on all ranks.
            make: gives this rank's int64 tensor.

        Raises:
            PeerError: another rank has failed.
        """
        return self._reduce(shape, make, dist.ReduceOp.SUM)

    def greatest(self, shape: tuple[int, ...], make: Callable[[], Tensor]) -> Tensor:
        """Return the greatest of each element of an int64 tensor; arguments as for `sum`."""
        return self._reduce(shape, make, dist.ReduceOp.MAX)

    def _reduce(self, shape: tuple[int, ...], make: Callable[[], Tensor], how: Any) -> Tensor:
        failure = None
        size = int(torch.Size(shape).numel())
        sent = torch.zeros(size + 1, dtype=torch.int64, device=self.device)
        try:
            sent[:size] = make().reshape(-1)
        except Exception as error:
            failure = error
            sent[size] = 1 + self.rank
        self._count(sent)
        dist.all_reduce(sent, how, group=self.group)
        self._refuse(failure, ["?"] if int(sent[size]) else [])
        return sent[:size].view(shape)

    def _refuse(self, failure: Exception | None, failed: list[Any]) -> None:
        if failure is not None:
            raise failure
        if failed:
            which = "" if failed == ["?"] else f" {failed}"
            raise PeerError(f"{self.op}: no rank may fail, got an error on another rank{which}")

    def _count(self, sent: Tensor) -> None:
        self.calls += 1
        self.bytes += sent.numel() * sent.element_size()
