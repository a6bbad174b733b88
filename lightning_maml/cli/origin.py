"""Where numbers come from: commit, machine and versions."""

import os
import platform
import time
from importlib.metadata import version

import torch

from lightning_maml.cli.reproduction import commit


def origin() -> dict[str, str]:
    """What a reader needs to know of the machine and the code that runs, in words, by name.

    Example:
        >>> [*origin()]
        ['date', 'commit', 'machine', 'versions']
    """
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = [f"{name} {version(name)}" for name in ("lightning-maml", "lightning", "torch")]
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "commit": commit() or "unknown: installed, not run from a checkout",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores{gpu}",
        "versions": ", ".join([*versions, f"Python {platform.python_version()}"]),
    }
