"""What is left of a run when it ends, however it ends: written whole, and read as nothing but data."""

from lightning_maml.saving.best import BestCheckpoint
from lightning_maml.saving.files import SafeCheckpointIO, read_checkpoint, whole_file
from lightning_maml.saving.last import LastCheckpoint
from lightning_maml.saving.lock import FolderInUseError, FolderLock
from lightning_maml.saving.names import allowing, build, hyper_parameters
from lightning_maml.saving.resume import CONFIGURATION, as_plain, last_of_this_run
from lightning_maml.saving.states import (
    check_fits,
    check_optimization,
    check_states,
    random_state,
    restore_random_state,
)

__all__ = [
    "CONFIGURATION",
    "BestCheckpoint",
    "FolderInUseError",
    "FolderLock",
    "LastCheckpoint",
    "SafeCheckpointIO",
    "allowing",
    "as_plain",
    "build",
    "check_fits",
    "check_optimization",
    "check_states",
    "hyper_parameters",
    "last_of_this_run",
    "random_state",
    "read_checkpoint",
    "restore_random_state",
    "whole_file",
]
