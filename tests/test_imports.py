"""Who imports whom, what a bare import needs, and what must not stand in any file."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

OPTIONAL = (
    "gym",
    "gymnasium",
    "huggingface_hub",
    "learn2learn",
    "matplotlib",
    "mujoco",
    "plotly",
    "pytorch_lightning",
    "torchvision",
    "triton",
)

# Imports run one way: a room, or a file beside the rooms, imports those that stand before it.
ORDER = (
    "checks",
    "tasks",
    "inner",
    "metrics",
    "losses",
    "meta_gradient",
    "networks",
    "learner",
    "presets",
    "engine",
    "adaptation",
    "saving",
    "data",
    "training",
    "rl",
    "trained",
    "report",
    "cli",
)
MOST_FILES = 12
"""Beside the rooms: what a user calls."""


def _imports(path: Path) -> Iterator[str]:
    """Full names of all that a file imports, inside functions too."""
    for node in _nodes(ast.parse(path.read_text(), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import hides from this test"
            # `from lightning_maml import engine` imports a module, `from lightning_maml.engine import Eager` a name
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """As ``ast.walk``, without what stands under ``if TYPE_CHECKING``, which nothing runs."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from _nodes(node)


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _modules(repository: Path) -> dict[str, list[Path]]:
    """The files of each direct child of lightning_maml: of ``module.py`` itself, of everything in ``engine/``."""
    package = repository / "lightning_maml"
    return {
        child.stem: [child] if child.suffix == ".py" else sorted(child.rglob("*.py"))
        for child in sorted(package.iterdir())
        if child.name != "__init__.py" and (child.suffix == ".py" or (child / "__init__.py").is_file())
    }


def _direct(path: Path) -> set[str]:
    """Which direct children of lightning_maml a file imports; ``""`` for the package itself, which imports them all."""
    parts = [name.split(".") for name in _imports(path) if _within(name, "lightning_maml")]
    return {name[1] if len(name) > 1 else "" for name in parts}


# (a) a bare import


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL)


# torchmetrics imports these wherever they are installed, so that they cannot be blocked under it
ITS = ("matplotlib", "torchvision")
BLOCK = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {tuple(name for name in OPTIONAL if name not in ITS)!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked by the test)", name=name)

sys.meta_path.insert(0, Blocked())
"""


def test_block_works() -> None:
    done = _run(BLOCK + "import triton")
    assert done.returncode == 1
    assert "blocked by the test" in done.stderr


def test_import_needs_no_optional_package() -> None:
    done = _run(BLOCK + "import lightning_maml; [getattr(lightning_maml, name) for name in lightning_maml.__all__]")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    # what torch itself says of a missing triton is torch's
    assert [line for line in done.stderr.splitlines() if "triton not found" not in line] == []


def test_import_loads_no_optional_package_of_our_own_accord() -> None:
    # Lightning itself looks for some of them; nothing beyond what it loads may come in
    code = (
        "import sys, torch, lightning.pytorch, torchmetrics; before = set(sys.modules); from lightning_maml import *; "
    )
    done = _run(code + "print(*sorted(set(sys.modules) - before))")
    assert done.returncode == 0, done.stderr
    new = done.stdout.split()
    assert "lightning_maml.adaptation" in new
    assert {name.split(".")[0] for name in new} & {*OPTIONAL, "sympy"} == set()
    assert [name for name in new if _within(name, "torch._inductor") or _within(name, "lightning_maml.cli")] == []


# (b) the import direction


def test_direction(repository: Path) -> None:
    wrong = [
        f"{path.relative_to(repository)} imports {imported or 'the whole package'}"
        for name, paths in _modules(repository).items()
        for path in paths
        for imported in sorted(_direct(path) - {name, "kernels"})  # those have a test of their own, below
        if imported not in ORDER[: ORDER.index(name)]
    ]
    assert wrong == []


def test_every_module_has_its_place(repository: Path) -> None:
    assert set(_modules(repository)) == {*ORDER}
    assert len(list((repository / "lightning_maml").glob("*.py"))) <= MOST_FILES


def _circle(edges: dict[str, set[str]]) -> list[str]:
    """Files that import one another in a ring, or nothing."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        found: list[str] = next(filter(None, (walk(to, [*path, name]) for to in sorted(edges.get(name, ())))), [])
        done.add(name)
        return found

    return next(filter(None, (walk(name, []) for name in sorted(edges))), [])


def test_no_file_imports_itself_by_way_of_others(repository: Path) -> None:
    files = {
        ".".join(path.relative_to(repository).with_suffix("").parts): path
        for name in _modules(repository).values()
        for path in name
        if path.name != "__init__.py"  # a front door imports what stands behind it
    }
    edges = {name: {other for other in map(_file(files), _imports(path)) if other} for name, path in files.items()}
    assert sum(map(len, edges.values())) > 200
    assert _circle(edges) == []


def _file(files: dict[str, Path]) -> Callable[[str], str]:
    return lambda name: next((known for known in (name, name.rpartition(".")[0]) if known in files), "")


def test_circles_are_seen() -> None:
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert _circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


CONCRETE = {
    *("SGD", "Adam", "ByName", "Part", "AllRows", "MiniBatches", "Nothing", "Proximal"),
    *("Tolerance", "ClipByNorm", "AddDecayed", "Momentum", "SecondMoment", "Curvature", "Sign", "SharpnessAware"),
    *("Rates", "Scale", "FromMeta", "OneHead", "Prototypes", "Zeros"),
    *("FirstOrder", "Implicit", "Joint", "MultiStep", "Reptile", "Unrolled", "ZeroOrder"),
}


def test_concrete_holds_every_loop_part_and_rule() -> None:
    from lightning_maml import inner, meta_gradient

    what_they_are = {"At", "InnerLoop", "Parts", "State", "Transformation", "Annealed", "Loop", "MetaGradient", "Query"}
    everything = {**vars(inner), **vars(meta_gradient)}
    assert {name for name, value in everything.items() if isinstance(value, type)} - what_they_are == CONCRETE


def test_engines_name_no_loop_part_or_rule(repository: Path) -> None:
    # what they run stands in coverage.py, by exact class: an engine that asks for a class would run what is derived
    wrong = [
        f"{path.relative_to(repository)}:{node.lineno} names {name}"
        for folder in ("engine", "rl")
        for path in sorted((repository / "lightning_maml" / folder).rglob("*.py"))
        if path.name != "coverage.py"
        for node in ast.walk(ast.parse(path.read_text()))
        for name in _named(node)
        if name in CONCRETE
    ]
    assert wrong == []


def _named(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and not ast.unparse(node.value).startswith("torch.optim"):
        return [node.attr]
    return [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []


def test_kernels_stand_alone(repository: Path) -> None:
    allowed = {*sys.stdlib_module_names, "numpy", "torch", "triton"}
    wrong = [
        f"{path.relative_to(repository)} imports {name}"
        for path in sorted((repository / "kernels").rglob("*.py"))
        for name in _imports(path)
        if name.split(".")[0] not in allowed and not _within(name, "lightning_maml.kernels")
    ]
    assert wrong == []


def test_only_the_fused_engine_imports_kernels(repository: Path) -> None:
    importing = {
        path.relative_to(repository / "lightning_maml").as_posix()
        for path in (repository / "lightning_maml").rglob("*.py")
        for name in _imports(path)
        if _within(name, "lightning_maml.kernels") or _within(name, "kernels")
    }
    operators = {f"engine/fused/{name}.py" for name in ("mlp_adapt", "conv_adapt", "sgd_update")}
    assert importing <= {*operators, "rl/fused.py"}


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import lightning_maml.engine.loops.eager", {"engine"}),
        ("from lightning_maml import engine, tasks", {"engine", "tasks"}),
        ("from lightning_maml.engine import Eager", {"engine"}),
        ("def later():\n    from lightning_maml.cli.command_line import main", {"cli"}),
        ("import lightning_maml", {""}),
        ("import lightning_maml_more", set()),
    ],
)
def test_imports_are_seen(tmp_path: Path, source: str, names: set[str]) -> None:
    path = tmp_path / "example.py"
    path.write_text(source)
    assert _direct(path) == names


# (c) what must not stand in any file

# In pieces: this file is one of those looked at.
REGISTRIES = (
    "py" + "pi.org",
    "files.python" + "hosted",
    "/sim" + "ple/",
    "conda.ana" + "conda",
    "download.py" + "torch",
)
MACHINE = re.compile(r"(?<![\w.*~}$)-])/(?:wo" + r"rk|home|root|Users|farm|tmp/bash_jobs)/")
LARGEST = 2**20


def _files(repository: Path) -> list[Path]:
    """Every file that is, or would be, committed."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"not a git checkout: {done.stderr.strip()}")
    paths = [repository / name for name in done.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]  # one that was deleted is still listed until committed


def test_no_file_names_a_registry_or_a_path_of_this_machine(repository: Path) -> None:
    wrong = []
    for path in _files(repository):
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
            if any(host in line for host in REGISTRIES) or MACHINE.search(line):
                wrong.append(f"{path.relative_to(repository)}:{number}: {line.strip()[:100]}")
    assert wrong == []


@pytest.mark.parametrize("path", ["/wo" + "rk/main", '"/ho' + 'me/me/x"', "cd /ro" + "ot/x"])
def test_machine_paths_are_seen(path: str) -> None:
    assert MACHINE.search(path)


def test_no_large_files(repository: Path) -> None:
    sizes = {str(path.relative_to(repository)): path.stat().st_size for path in _files(repository)}
    assert "pyproject.toml" in sizes
    assert {name: size for name, size in sizes.items() if size > LARGEST} == {}
