"""Checkpoints and adapted weights: files that are written whole, and read as nothing but data."""

from lightning_maml.saving.best import BestCheckpoint
from lightning_maml.saving.files import SafeCheckpointIO, read_checkpoint, whole_file
from lightning_maml.saving.last import LastCheckpoint
from lightning_maml.saving.lock import FolderInUseError, FolderLock
from lightning_maml.saving.names import allowing, build, hyper_parameters
from lightning_maml.saving.states import random_state, restore_random_state

__all__ = [
    "BestCheckpoint",
    "FolderInUseError",
    "FolderLock",
    "LastCheckpoint",
    "SafeCheckpointIO",
    "allowing",
    "build",
    "hyper_parameters",
    "random_state",
    "read_checkpoint",
    "restore_random_state",
    "whole_file",
]
