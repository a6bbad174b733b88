"""How configurations are read."""

from __future__ import annotations

import jsonargparse

from lightning_maml.engine import Engine
from lightning_maml.learner import Algorithm

__all__ = ["parse_as_the_command_line"]


def parse_as_the_command_line() -> None:
    """Let functions and subclasses stand for an algorithm or an engine, as in configurations and their checkpoints.

    Both are dataclasses or have some as subclasses, of which jsonargparse takes the base class alone by itself.
    """
    jsonargparse.set_parsing_settings(subclasses_enabled=[Algorithm, Engine])
