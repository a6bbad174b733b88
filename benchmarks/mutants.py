"""Changes the meta-gradient rules and the operators one spot at a time, and looks whether a test notices.

    python -m benchmarks.mutants [--json FILE] [--only PATH ...]

cosmic-ray makes the mutants: another operator, comparison or number, a condition turned round, a decorator gone. Each
runs in a copy of the repository, in a process forked from one that has imported torch already, against the tests of
:data:`TESTS` up to the first that fails. A survivor is a line that no test watches, or a change that changes nothing;
docs/reliability.md says which.
"""

import difflib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.result_file import ResultFile, Row, command_line

FAMILY, MAML = "tests/test_family.py", "tests/meta_gradient/test_meta_gradients.py"
RULES = (
    "(implicit or damping or proximal or tolerance or conjugate or saddle or inner_loop_diverges or multi_step or "
    "annealing or reptile or rejects or chunks_add or tells_the_algorithm) "
    "and not conv and not learn2learn and not twenty and not resume"
)
OPERATOR = "refused or in_float32 or opcheck or slope or differentiating or checked or labels or first_order_is or "
OPERATOR += "rate_of_zero"
UPDATE = "operator or second_order or what_does_not_fit"
TESTS: dict[str, list[str]] = {
    "lightning_maml/meta_gradient/implicit.py": [FAMILY, "-k", RULES],
    "lightning_maml/meta_gradient/multi_step.py": [FAMILY, "-k", RULES],
    "lightning_maml/meta_gradient/unrolled.py": [
        MAML,
        FAMILY,
        "-k",
        f"(reference and mlp) or (first_order and mlp and not learn2learn) or {RULES}",
    ],
    "kernels/sgd_update/op.py": ["tests/kernels/test_kernels_sgd_update.py", "-k", UPDATE],
    "kernels/mlp_adapt/op.py": ["tests/kernels/test_kernels_mlp_adapt.py", "-k", OPERATOR],
}
"""What is mutated, and the tests that are to notice, as arguments of pytest."""
REPLACED = {
    *("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul", "Mod_Mul", "Pow_Mul"),
    *("Eq_NotEq", "NotEq_Eq", "Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Lt_Gt", "Gt_Lt", "LtE_GtE", "GtE_LtE"),
    *("Is_IsNot", "IsNot_Is", "In_NotIn", "NotIn_In"),
}
"""Of the replacements of one operator by another, those that say most: one or two for each."""
SECONDS = 120.0


def mutants(path: Path) -> Iterator[tuple[str, str]]:
    """The names of operators of cosmic-ray, and the mutated source."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    source = path.read_text()
    for name in sorted(operator_names()):
        kind = name.removeprefix("core/")
        replaces = kind.startswith(("ReplaceBinaryOperator", "ReplaceComparisonOperator"))
        if kind.startswith("Variable") or (replaces and kind.split("_", 1)[1] not in REPLACED):
            continue  # those of variables want to be told which
        occurrence = 0
        while (mutated := mutate_code(source, get_operator(name)(), occurrence)) is not None:
            occurrence += 1
            if mutated != source:
                yield kind, mutated


def notices(folder: Path, arguments: list[str]) -> bool:
    """Whether a test fails in the copy, or does not end, or the package cannot be imported."""
    child = os.fork()
    if child == 0:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        os.setsid()
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        code = 1
        try:
            import pytest

            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *arguments]))
        finally:
            os._exit(code)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) != 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def copy(repository: Path, folder: Path) -> None:
    """The repository's files, the kernels where the package has them."""
    files = subprocess.run(["git", "ls-files"], cwd=repository, capture_output=True, text=True, check=True).stdout
    for name in files.splitlines():
        if (repository / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / name, folder / name)
    for name in ("kernels", "configs"):
        (folder / "lightning_maml" / name).symlink_to(folder / name)


def survivors(path: Path, arguments: list[str], folder: Path) -> tuple[int, list[Row]]:
    """How many mutants of a file there are, and those that no test notices."""
    source, tried, found = path.read_text(), 0, []
    for kind, mutated in mutants(path):
        path.write_text(mutated)
        tried += 1
        if not notices(folder, arguments):
            lines = difflib.unified_diff(source.splitlines(), mutated.splitlines(), n=0, lineterm="")
            change = [line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]
            found.append({"operator": kind, "change": change})
            print(path.relative_to(folder), kind, *change, sep="\n    ", flush=True)
        path.write_text(source)
    return tried, found


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(TESTS), default=list(TESTS), metavar="PATH")
    options = parser.parse_args()
    sys.dont_write_bytecode = True
    import lightning.pytorch  # noqa: F401
    import torch
    import torchmetrics  # noqa: F401

    torch.set_num_threads(1)
    # the list may grow file by file
    results = ResultFile(options.json, "mutants", key=("file",), shown=("file", "mutants"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy(Path.cwd(), folder)
        for path in options.only:
            if notices(folder, TESTS[path]):
                sys.exit(f"Expected the tests to pass on {path} as it is, but they do not: {TESTS[path]}.")
            tried, found = survivors(folder / path, TESTS[path], folder)
            results.add(file=path, mutants=tried, survivors=found)


if __name__ == "__main__":
    main()
