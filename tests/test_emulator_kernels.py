"""The kernels' PTX, warp by warp on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton")

RUN = """
import sys

import torch

from lightning_maml.kernels.emulator import Emulation
from lightning_maml.kernels.mlp_adapt import size
from lightning_maml.kernels.mlp_adapt.kernel import launch

precision, *numbers = sys.argv[1:]
architecture, *classes = map(int, numbers)
for count in classes:
    draw = torch.Generator().manual_seed(0)
    theta, inputs = (torch.randn(shape, generator=draw) for shape in (size([3, count]), (2, 1, 20, 3)))
    labels = torch.randint(count, (2, 1, 20), generator=draw)
    with Emulation(architecture) as emulation:
        kind = ([3, count], "relu", "cross_entropy", 2, False, precision)
        launch(theta, torch.full((1, 1), 0.1), inputs[0], labels[0], inputs[1], labels[1], *kind)
    assert [launched.kernel for launched in emulation.launches] == ["mlp_forward", "mlp_backward"]
    for found in emulation.faults() + [remark for remark in emulation.remarks() if "different values" in remark]:
        print(count, "classes:", found)
"""


def findings(folder: Path, architecture: int, precision: str, *classes: int) -> str:
    """What the emulator has against the cross-entropy of so many classes: faults, and lanes that disagree."""
    (folder / "run.py").write_text(RUN)
    # the interpreter, which the other tests use, compiles nothing
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder / "triton")
    command = [sys.executable, "-W", "ignore", folder / "run.py", precision, architecture, *classes]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_lanes_agree_on_the_sums_of_many_classes(tmp_path: Path):
    """A product that is fused into a sum over lanes leaves the last bit to the lane that writes last."""
    assert findings(tmp_path, 90, "tf32x3", 64) == ""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["ieee", "tf32x3", "tf32", "bf16"])
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_lanes_agree_everywhere(architecture: int, precision: str, tmp_path: Path):
    assert findings(tmp_path, architecture, precision, 5, 32, 33, 64, 65, 128) == ""
