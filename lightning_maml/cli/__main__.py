"""``python -m lightning_maml.cli``, as `torchrun` starts it."""

import sys

from lightning_maml.cli import main

sys.exit(main())
