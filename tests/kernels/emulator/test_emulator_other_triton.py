"""The same with another Triton than the one installed: GPU machines have other versions, whose PTX differs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = "LIGHTNING_MAML_OTHER_TRITON"
"""What ``pip install --target FOLDER --no-deps triton==3.6.0`` has filled."""


@pytest.mark.slow
def test_with_another_triton(tmp_path: Path):
    folder = os.environ.get(FOLDER)
    if not folder:
        pytest.skip(f"${FOLDER} names no folder with another Triton")
    path = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_CACHE_DIR": str(tmp_path)}
    where = [sys.executable, "-c", "import triton; print(triton.__file__)"]
    done = subprocess.run(where, capture_output=True, text=True, env=environment, check=True)
    assert Path(done.stdout.strip()).is_relative_to(folder)
    call = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).parent)]
    done = subprocess.run(call, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
