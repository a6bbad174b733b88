"""An emulator of the PTX that Triton and NVRTC compile for the kernels: no GPU is needed.

It runs the project's own launch code with tensors on the CPU: Triton's JIT and NVRTC compile as for a GPU, and the PTX
that comes out is executed warp by warp. CONTRIBUTING.md, "Adding a kernel", has an example.

It needs Triton, outside of its interpreter (``TRITON_INTERPRET``), and a C compiler. It watches for

- races: between two barriers of a program one warp writes a cell (4 bytes of global, 2 of shared memory) that another
  one reads or writes. Who touched what tells of them in any order of the warps;
- reads of memory never written, as what ``new_empty`` and ``empty_like`` give, and shared memory, is at first;
- uses out of bounds (every tensor lies between guards), misaligned ones, writes to inputs, two programs of a launch at
  one address, barriers that not all warps or lanes reach, ``mma`` or ``shfl`` with lanes missing;
- remarks, which a GPU forgives: two warps, or two lanes in one instruction, that write one place; lanes of a warp that
  pass memory to each other without ``bar.warp.sync``.

It does not show what ``ptxas`` makes of the PTX, weak memory beyond the free order between barriers, or time: the clock
is a model (``operations.py``). Tensor cores are not exact to the last bit: products are exact, groups of four are added
to the sum and rounded towards zero, and tf32 operands lose their lower 13 bits, as on hardware. ``ex2``, ``lg2``,
``rcp`` and ``div.full`` are rounded correctly, where hardware is off by 1 or 2 in the last place.

A line of ``operations.py`` is an operation; ``ptx.py`` decodes, ``order.py`` finds where diverged lanes meet again,
``engine.c`` executes, watches, counts and keeps the clock, ``emulation.py`` takes the GPU's place.
"""

from lightning_maml.kernels.emulator.emulation import Emulation, Found, Launch
from lightning_maml.kernels.emulator.ptx import UnsupportedError
