"""What got slower between two runs.

    python -m benchmarks compare OLD NEW [--tolerance 0.15]

OLD and NEW are what ``--json`` of ``python -m benchmarks`` wrote. Times are relative to learn2learn's in the same run
where both runs have it, as machines differ, and one machine from day to day. A contender got slower where its median
rose by more than the tolerance and the two runs' spreads do not overlap. The exit code is then 1.
"""

from pathlib import Path

from benchmarks.result_file import command_line, read

POINT = ("workload", "device", "tasks", "inner_steps")

Key = tuple[str, ...]


def measurements(path: Path) -> dict[Key, dict[str, float]]:
    """The last measurement of every point and contender in a file.

    Raises:
        ValueError: the file holds none.
    """
    try:
        return {
            (*(str(row[name]) for name in POINT), row["contender"]): {
                name: float(row[name]) for name in ("median_ms", "p10_ms", "p90_ms")
            }
            for row in read(path)["rows"]
        }
    except KeyError as error:
        raise ValueError(f"Expected measurements of `python -m benchmarks` in {path} but they lack {error}.") from None


def relative(found: dict[Key, dict[str, float]], key: Key, other: dict[Key, dict[str, float]]) -> dict[str, float]:
    """A measurement, in multiples of learn2learn's median where both runs have one."""
    base = (*key[:-1], "learn2learn")
    unit = found[base]["median_ms"] if base in found and base in other and key != base else 1.0
    return {name: value / unit for name, value in found[key].items()}


def compare(old: dict[Key, dict[str, float]], new: dict[Key, dict[str, float]], tolerance: float) -> list[Key]:
    """What got slower, after a table of all that both runs have."""
    slower = []
    print(f"{'workload':18}{'tasks':>7}{'steps':>7}  {'contender':20}{'old ms':>10}{'new ms':>10}{'time':>8}")
    for key in sorted(old.keys() & new.keys(), key=lambda key: (key[0], int(key[2]), int(key[3]), key[4])):
        before, after = relative(old, key, new), relative(new, key, old)
        ratio = after["median_ms"] / before["median_ms"]
        worse = ratio > 1 + tolerance and after["p10_ms"] > before["p90_ms"] and key[-1] != "learn2learn"
        slower += [key] if worse else []
        times = f"{old[key]['median_ms']:10.2f}{new[key]['median_ms']:10.2f}{ratio:7.2f}x"
        print(f"{key[0]:18}{key[2]:>7}{key[3]:>7}  {key[4]:20}{times}{'  SLOWER' if worse else ''}")
    for key in sorted(old.keys() - new.keys()):
        print(f"only in the old run: {', '.join(key)}")
    return slower


def main(arguments: list[str]) -> int:
    parser = command_line(__doc__, "python -m benchmarks compare", writes=False)
    parser.add_argument("old", type=Path, metavar="OLD")
    parser.add_argument("new", type=Path, metavar="NEW")
    parser.add_argument("--tolerance", type=float, default=0.15, help="of a median's rise")
    options = parser.parse_args(arguments)
    try:
        old, new = measurements(options.old), measurements(options.new)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if not old.keys() & new.keys():
        parser.error(f"Expected measurements that {options.old} and {options.new} share but there are none")
    slower = compare(old, new, options.tolerance)
    print(f"{len(slower)} got slower" if slower else "nothing got slower")
    return int(bool(slower))
