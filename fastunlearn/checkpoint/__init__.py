"""Checkpoints on disk: perturb them without their model, in bounded memory; verify; sparse patches.

Checkpoints are safetensors files, or folders of them with an index.
"""

from fastunlearn.checkpoint.api import Verification, perturb, verify
from fastunlearn.checkpoint.files import Checkpoint
from fastunlearn.checkpoint.header import FormatError
from fastunlearn.checkpoint.patch import (
    PatchInfo,
    apply_patch,
    make_patch,
    patch_info,
    revert_patch,
)
from fastunlearn.checkpoint.receipt import CheckpointReceipt
from fastunlearn.checkpoint.scores import save_scores
from fastunlearn.checkpoint.stream import Digest

__all__ = [
    "Checkpoint",
    "CheckpointReceipt",
    "Digest",
    "FormatError",
    "PatchInfo",
    "Verification",
    "apply_patch",
    "make_patch",
    "patch_info",
    "perturb",
    "revert_patch",
    "save_scores",
    "verify",
]
