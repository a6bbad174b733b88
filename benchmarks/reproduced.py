"""The table of reproduced results of docs/results.md, from the files that ``lightning-maml reproduce`` writes.

    python -m benchmarks.reproduced [FOLDER]

A file that does not say all of :data:`FIELDS` is left out: what nobody can check is no result.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from lightning_maml.cli.reproduction import FIELDS, Comparison

FOLDER = Path(__file__).parent / "results" / "reproduced"
NUMBERS = ("value", "inner_steps", "measured", "measured_ci95", "published", "published_ci95")
HEAD = ("protocol", "seed", "updates", "minutes", "test tasks", "inner steps", "measured", "published", "", "what ran")


def read(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """The files of whole results, by name."""
    contents = {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    return {name: content for name, content in contents.items() if is_whole(content)}


def is_whole(content: dict[str, Any]) -> bool:
    """Whether a result says all that it takes to check it."""
    return all(content.get(name) is not None for name in FIELDS)


def markdown(results: dict[str, dict[str, Any]]) -> str:
    """The table, a row for each number, or a sentence where there are none."""
    if not results:
        return "No file in `benchmarks/results/reproduced/` says all of that yet.\n"
    lines = [f"| {' | '.join(HEAD)} |", "|---|--:|--:|--:|--:|--:|--:|--:|---|---|"]
    for name, content in results.items():
        lines += [f"| {' | '.join(cells)} |" for cells in _rows(name, content)]
    return "\n".join([*lines, *_seeds(results)]) + "\n"


def _seeds(results: dict[str, dict[str, Any]]) -> list[str]:
    """A sentence for each protocol that was trained to its end from several seeds."""
    trained: dict[str, list[float]] = {}
    for content in results.values():
        if not content["cut_short"]:
            last = content["results"][-1]
            if last["value"] == "accuracy":
                trained.setdefault(content["protocol"], []).append(100 * last["measured"])
    said = []
    for name, each in trained.items():
        if len(each) > 1:
            mean, least, most = sum(each) / len(each), min(each), max(each)
            said.append(f"\nThe {len(each)} seeds of `{name}`: {mean:.1f} % in the mean, {least:.1f} to {most:.1f} %.")
    return said


def _rows(name: str, content: dict[str, Any]) -> list[list[str]]:
    updates, of = content["updates"], content["of_updates"]
    done = f"{updates:,}" if updates == of else f"{updates:,} of {of:,}" + ", cut short" * content["cut_short"]
    queries = f"{content['test_queries']} queries{' a class' if content.get('ways') else ''}"
    kind = "transductive" if content["transductive"] else "not transductive"
    orders = f", {content['class_orders']} class orders" if content["class_orders"] > 1 else ""
    machine, weights = content["machine"], content["weights"][:8]
    where = machine.get("gpu") or f"{machine['threads']} of {machine['cores']} cores of {machine['machine']}"
    ran = f"`{name}`: commit {content['commit']}, weights {weights}, {where}"
    if content["overrides"]:
        ran += f", with `{' '.join(content['overrides'])}`"
    about = [f"`{content['protocol']}`", str(content["seed"]), done, f"{content['minutes']:.0f}"]
    about.append(f"{content['test_tasks']:,} of {queries}, {kind}{orders}")
    rows = []
    for result in content["results"]:
        numbers = Comparison(**{number: result[number] for number in NUMBERS}).cells()
        rows.append([*about, *numbers, result["verdict"] or "no verdict", ran])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    print(markdown(read(parser.parse_args().folder)), end="")


if __name__ == "__main__":
    main()
