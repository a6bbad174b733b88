"""Makes the data beside it, with the package that is imported: that of commit 3b76928, before the redesign.

``PYTHONPATH=CHECKOUT:tests:tests/saving python tests/saving/before/make.py`` makes everything that the configurations
do not say, and ``... make.py maml who_ran`` some of it: what is promised anew, and nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import test_before as cases
import torch

import who_ran

WITHOUT_CHECKPOINT = ("algorithm_", "maml_", "navigation_", "reptile_")  # but maml_pp


def inputs() -> dict[str, dict[str, Any]]:
    """Inputs for each kind of network, in short numbers."""
    torch.manual_seed(1)
    found: dict[str, dict[str, Any]] = {"observations": {"observations": (torch.randint(-4, 5, (5, 2)) / 4).tolist()}}
    for kind, shape in (("regression", [1]), ("rows", [2]), ("images", [1, 8, 8])):
        rows = torch.randint(-4, 5, (2, 9, *shape)) / 2
        labels = torch.arange(6).expand(2, 6) % 3
        targets = torch.randint(-4, 5, (2, 6, 1)) / 4 if kind == "regression" else labels
        named = {"support_inputs": rows[:, :6], "support_targets": targets, "query_inputs": rows[:, 6:]}
        found[kind] = {key: value.tolist() for key, value in named.items()}
    return found


def make(name: str, checkpoint: bool) -> dict[str, Any]:
    """What comes out of a case; makes its checkpoint, if it is to have one."""
    path, here = cases.BEFORE / f"{name}.ckpt", Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        if name in cases.BUILT:
            trainer = cases.built_and_trained(name, Path(), 2)
            trainer.save_checkpoint(path)
            found = {name: cases.answers(name, trainer.lightning_module)}
            trainer = cases.built_and_trained(name, Path(), 3, path)
            found[f"{name}, later"] = cases.answers(name, trainer.lightning_module)
        else:
            last = cases.fit(name)
            found = {name: cases.answers(name, cases.load(name, last))}
            if checkpoint:
                shutil.copy(last, path)
                shutil.rmtree("runs")
                found[f"{name}, later"] = cases.answers(name, cases.load(name, cases.fit_further(name)))
        os.chdir(here)
    return {key: value.tolist() for key, value in found.items()}


def write(file: str, content: dict[str, Any], add: bool = False) -> None:
    """A line for each entry, sorted; with ``add`` beside what is there already."""
    path = cases.BEFORE / file
    before = json.loads(path.read_text()) if add and path.exists() else {}
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in sorted((before | content).items())]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    chosen = sys.argv[1:] or [*cases.CONFIGURATIONS, *cases.BUILT, "who_ran"]
    sys.argv = sys.argv[:1]
    write("inputs.json", inputs())
    for case in chosen:
        if case != "who_ran":
            checkpoint = case == "maml_pp" or not case.startswith(WITHOUT_CHECKPOINT)
            write("answers.json", make(case, checkpoint), add=True)
            continue
        ran = {name: {engine: find() for engine, find in who_ran.engines_of(name).items()} for name in who_ran.NAMES}
        table = {
            f"{name} @ {engine}": list(dict.fromkeys((meta.name, adapted.name)))
            for name, of_engines in ran.items()
            for engine, (meta, adapted) in of_engines.items()
        }
        write("who_ran.json", {pair: names[0] if len(names) == 1 else names for pair, names in table.items()})
        write("numbers.json", {name: who_ran.summary(of_engines["eager"]) for name, of_engines in ran.items()})
