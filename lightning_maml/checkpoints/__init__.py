"""What is left of a run when it ends, however it ends: written whole, and read as nothing but data."""

from lightning_maml.checkpoints.files import (
    SafeCheckpointIO,
    check_fits,
    random_state,
    read_checkpoint,
    restore_random_state,
    whole_file,
)

__all__ = [
    "SafeCheckpointIO",
    "check_fits",
    "random_state",
    "read_checkpoint",
    "restore_random_state",
    "whole_file",
]
