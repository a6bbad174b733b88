"""All of tests/device, in one process of its own: there it registers a device with torch, for good."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_everything_on_a_device_that_is_not_the_cpu(repository: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "tests/device"]
    paths = os.pathsep.join(filter(None, (str(repository), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        command, cwd=repository, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(command[1:])}\n{done.stdout[-20_000:]}{done.stderr[-2000:]}"
