"""Compiles the C source of ``mlp_adapt`` to WebAssembly, and writes down what a page has to know in order to call it.

Writes ``src/built/kernel.wasm`` and ``src/built/kernel.json``: the fields of ``Problem`` and the names that are numbers
in C stand in Python alone, so the page reads them. Needs clang with lld and wasi-libc (Debian: apt-get install clang-19
lld-19 wasi-libc libclang-rt-19-dev-wasm32).
"""

import ctypes
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from lightning_maml.kernels.compiler import RETURNS, definitions
from lightning_maml.kernels.mlp_adapt import native

HERE = Path(__file__).parent
BUILT = HERE / "src" / "built"
CLANG = shutil.which("clang-19") or shutil.which("clang")
EXPORTS = ("adapt", "curvature", "size_of_problem", "malloc", "free")
FLAGS = ["--target=wasm32-wasi", "-std=c11", "-O3", "-msimd128", "-ffp-contract=fast", "-fno-math-errno"]
FLAGS += ["-mexec-model=reactor", "-Werror=switch", "-Wl,--strip-all"]


def main() -> None:
    """Builds both files; raises SystemExit with the compiler's words where it fails."""
    if CLANG is None:
        sys.exit(
            "playground: found no clang (Debian: apt-get install clang-19 lld-19 wasi-libc libclang-rt-19-dev-wasm32)"
        )
    problem = native._Problem
    exports = [f"-Wl,--export={name}" for name in EXPORTS]
    BUILT.mkdir(parents=True, exist_ok=True)
    headers = Path(native.__file__).resolve().parent.parent
    call = [CLANG, *FLAGS, f"-I{headers}", *definitions(torch.float32, problem), str(HERE / "kernel.c"), *exports]
    done = subprocess.run([*call, "-o", str(BUILT / "kernel.wasm")], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"playground: {' '.join(call)} failed:\n{done.stderr}")
    fields = [[name, *described(kind)] for name, kind in problem._fields_]
    numbers = {name.lower(): value for name, value in problem.constants.items()}
    (BUILT / "kernel.json").write_text(json.dumps({"fields": fields, "returns": RETURNS, **numbers}, indent=1))


def described(kind: type) -> tuple[str, int]:
    """The type of a field of ``Problem``, and how many it holds."""
    length = getattr(kind, "_length_", 1)
    names = {ctypes.c_int64: "int64", ctypes.c_double: "double", ctypes.c_void_p: "pointer"}
    return names[getattr(kind, "_type_", kind) if length > 1 else kind], length


if __name__ == "__main__":
    main()
