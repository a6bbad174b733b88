"""What is left of a run when it ends, however it ends: written whole, and read as nothing but data."""

from lightning_maml.checkpoints.files import (
    SafeCheckpointIO,
    check_fits,
    random_state,
    read_checkpoint,
    restore_random_state,
    whole_file,
)
from lightning_maml.checkpoints.names import allowing, build, hyper_parameters
from lightning_maml.checkpoints.states import check_optimization, check_states

__all__ = [
    "SafeCheckpointIO",
    "allowing",
    "build",
    "check_fits",
    "check_optimization",
    "check_states",
    "hyper_parameters",
    "random_state",
    "read_checkpoint",
    "restore_random_state",
    "whole_file",
]
