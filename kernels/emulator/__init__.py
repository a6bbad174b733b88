"""An emulator of the PTX that Triton compiles for the kernels: no GPU is needed.

It runs the project's own launch code with tensors on the CPU: Triton's JIT specialises and compiles as for a GPU, and
the PTX that comes out is executed warp by warp.

    from lightning_maml.kernels.emulator import Emulation
    from lightning_maml.kernels.sgd_update.kernel import launch

    with Emulation(90, schedule="backward") as emulation:
        phi, _ = launch(theta, gradient, rate)  # tensors on the CPU
    assert not emulation.faults()

It needs Triton, outside of its interpreter (``TRITON_INTERPRET``), and a C compiler.

What is watched:

- *Races*: between two barriers of a program, a byte (4 in global, 2 in shared memory) written by one warp, and read or
  written by another. They are found from who touched what, whatever the order; still, warps run in the order that is
  asked for, and results must be the same bits in every one.
- Reads of memory never written: what ``new_empty`` and ``empty_like`` give starts as such, and so does shared memory.
- Bounds (every tensor lies between guards), alignment, writes to inputs, two programs of a launch at one address,
  barriers that not all warps or lanes reach, ``mma`` or ``shfl`` with lanes missing.
- Remarks, which a GPU forgives: two warps, or two lanes in one instruction, that write one place; lanes of a warp that
  pass memory to each other without ``bar.warp.sync``.

What it does not show:

- What ``ptxas`` does after the PTX: its order, its registers. The order between two barriers is free, so that a race of
  the PTX covers it.
- Weak memory beyond that: nothing here communicates without a barrier.
- Tensor cores bit by bit: products are exact, groups of four are added to the sum and rounded towards zero. tf32
  operands lose their lower 13 bits, as on hardware. ``ex2``, ``lg2``, ``rcp``, ``div.full`` are rounded correctly,
  where hardware is off by 1 or 2 in the last place.
- Time. The clock is a model (``operations.py``): in-order issue, an order within basic blocks that an assembler could
  choose with registers without limit, one program alone.

A line of ``operations.py`` is an operation; ``ptx.py`` decodes, ``order.py`` finds where diverged lanes meet again,
``engine.c`` executes, watches, counts and keeps the clock, ``emulation.py`` takes the GPU's place.
"""

from lightning_maml.kernels.emulator.emulation import Emulation, Found, Launch
from lightning_maml.kernels.emulator.ptx import UnsupportedError

__all__ = ["Emulation", "Found", "Launch", "UnsupportedError"]
