"""What is left of a run when it ends, however it ends: written whole, and read as nothing but data."""

from lightning_maml.checkpoints.best import BestCheckpoint
from lightning_maml.checkpoints.files import (
    SafeCheckpointIO,
    check_fits,
    random_state,
    read_checkpoint,
    restore_random_state,
    whole_file,
)
from lightning_maml.checkpoints.last import LastCheckpoint
from lightning_maml.checkpoints.lock import FolderInUseError, FolderLock
from lightning_maml.checkpoints.resume import CONFIGURATION, last_of_this_run, plain

__all__ = [
    "CONFIGURATION",
    "BestCheckpoint",
    "FolderInUseError",
    "FolderLock",
    "LastCheckpoint",
    "SafeCheckpointIO",
    "check_fits",
    "last_of_this_run",
    "plain",
    "random_state",
    "read_checkpoint",
    "restore_random_state",
    "whole_file",
]
