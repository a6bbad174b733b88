"""CUDA C++ by NVRTC, which needs no GPU: what it says of a source, what is kept, and what a driver is given.

The driver is a library of C that writes down what it was called with.
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_maml.kernels import nvrtc

if reason := nvrtc.why_unavailable():
    pytest.skip(reason, allow_module_level=True)

SOURCE = """
extern "C" __global__ void __launch_bounds__(32) twice(
    const float *__restrict__ from, // a comment, with a comma
    float *into, int numbers) {
    if (threadIdx.x < numbers) into[threadIdx.x] = FACTOR * from[threadIdx.x];
}
"""
DRIVER = """
#include <string.h>
long long seen[16];
char name[64];
int status;
int cuModuleLoadData(void **module, const char *code) {
    *module = (void *)1, seen[0]++, seen[1] = !memcmp(code, "\\177ELF", 4);
    return 0;
}
int cuModuleGetFunction(void **function, void *module, const char *of) {
    strcpy(name, of), *function = (void *)42;
    return 0;
}
int cuFuncSetAttribute(void *function, int attribute, int value) {
    seen[2] = attribute, seen[3] = value;
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = 1000 * attribute + device;
    return 0;
}
int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **arguments, void **extra) {
    seen[4] = (long long)function, seen[5] = x, seen[6] = y * z * by * bz, seen[7] = bx, seen[8] = shared;
    seen[9] = (long long)stream, seen[10] = *(long long *)arguments[0], seen[11] = *(long long *)arguments[1];
    seen[12] = *(int *)arguments[2], seen[13] = extra == 0;
    return status;
}
int cuGetErrorName(int status, const char **said) {
    *said = "CUDA_ERROR_OUT_OF_MEMORY";
    return 0;
}
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    source, library = tmp_path / "driver.c", tmp_path / "libcuda.so.1"
    source.write_text(DRIVER)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    found = ctypes.CDLL(str(library))
    found.cuLaunchKernel.argtypes = nvrtc.LAUNCH
    monkeypatch.setattr(nvrtc, "driver", lambda: found)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 7 + index, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setenv("LIGHTNING_MAML_CACHE", str(tmp_path / "kept"))
    return found


def kernel(*options: str, source: str = SOURCE) -> nvrtc.Kernel:
    return nvrtc.Kernel(source, "twice", options or ("-DFACTOR=2",), 32, 4096)


def launch(one: nvrtc.Kernel, *tensors: torch.Tensor) -> None:
    one(3, torch.device("cuda", 1), tensors, (5,))


def test_what_the_driver_is_given(driver: ctypes.CDLL) -> None:
    a, b, one = torch.ones(5), torch.ones(5), kernel()
    launch(one, a, b)
    launch(one, b, a)
    seen = list((ctypes.c_longlong * 16).in_dll(driver, "seen"))
    assert seen[:4] == [1, 1, nvrtc.DYNAMIC_SHARED, 4096]  # loaded once, machine code
    assert seen[4:10] == [42, 3, 1, 32, 4096, 8]
    assert seen[10:14] == [b.data_ptr(), a.data_ptr(), 5, 1]
    assert ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(driver, "name"))) == b"twice"


def test_a_driver_that_fails_says_why(driver: ctypes.CDLL) -> None:
    ctypes.c_int.in_dll(driver, "status").value = 2
    with pytest.raises(RuntimeError, match="Expected to launch `twice` but the driver says CUDA_ERROR_OUT_OF_MEMORY"):
        launch(kernel(), torch.ones(5), torch.ones(5))


def test_shared_memory_is_the_devices(driver: ctypes.CDLL) -> None:
    nvrtc.most_shared.cache_clear()
    assert nvrtc.most_shared(1) == 1000 * nvrtc.MOST_SHARED + 1
    nvrtc.most_shared.cache_clear()


def test_machine_code_is_kept(driver: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = kernel().machine_code(90)
    assert code[:4] == b"\x7fELF"
    assert [path.suffix for path in (tmp_path / "kept").iterdir()] == [".cubin"]
    compiled: list[Any] = []
    monkeypatch.setattr(nvrtc, "compiled", lambda *arguments: compiled.append(arguments) or code)
    assert kernel().machine_code(90) == code
    assert not compiled
    kernel("-DFACTOR=3").machine_code(90)  # other options, another architecture: another kernel
    kernel().machine_code(80)
    assert len(compiled) == 2


def test_what_does_not_compile_is_told() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)Expected to compile `twice` for sm_90 but NVRTC says .*FACTOR"):
        nvrtc.compiled(SOURCE, "twice", "sm_90", ())
    with pytest.raises(ValueError, match="Expected a source with the function `twice` but it has none"):
        kernel(source="extern int once;")


def test_parameters_are_read_in_the_source() -> None:
    assert kernel().parameters == ["from", "into", "numbers"]
    assert ".entry twice" in kernel().ptx(90)
