"""An inner step of all tasks and all parameters in one launch."""

from lightning_maml.kernels.sgd_update.op import sgd_update
