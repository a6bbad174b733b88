"""``python -m lightning_maml.cli``, as `torchrun` starts it."""

import sys

from lightning_maml.cli.command_line import main

sys.exit(main())
