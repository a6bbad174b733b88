"""``python -m MODULE ARGUMENT ...`` with the stand-in device registered: how benchmarks/gpu.sh is rehearsed.

python tests/device/rehearse.py MODULE [ARGUMENT ...]
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path


def main() -> None:
    """Runs the module as the main one."""
    here = Path(__file__).resolve().parent
    sys.path[:0] = [str(here.parents[1]), str(here.parent)]
    os.environ.pop("TRITON_INTERPRET", None)  # the emulator runs what Triton compiles

    import graphs
    import standin

    standin.install()
    sys.argv = sys.argv[1:]
    with standin.as_a_gpu(), graphs.in_the_place_of_cudas():
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
