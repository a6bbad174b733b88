"""Prints the tables of who runs what in docs/engines.md, from lightning_maml/engine/coverage.py.

``python docs/who_runs_what.py`` prints them; ``--write`` puts them between their marks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import marked
from torch import nn

import lightning_maml
from lightning_maml import inner, meta_gradient, presets
from lightning_maml.engine import coverage
from lightning_maml.engine.coverage import Runs
from lightning_maml.inner import LearnedRate
from lightning_maml.learner import BatchNorm

EAGER: Runs = dict.fromkeys(coverage.BATCHED, coverage.ANYTHING)
ENGINES: dict[str, Runs] = {
    "`eager`": EAGER,
    "`batched`": coverage.BATCHED,
    "compiled": coverage.COMPILED,
    "`sgd_update`": coverage.SGD_UPDATE,
    "`mlp_adapt`": coverage.ADAPTATION,
    "`conv_adapt`": coverage.CONV_ADAPT,
    "`Graphed`": coverage.GRAPHED,
    "rollouts": coverage.ROLLOUTS,
}


def table(head: str, rows: dict[str, list[bool]]) -> str:
    """A table of Markdown: a row for each thing, a dot where an engine runs it."""
    lines = [f"| {head} | {' | '.join(ENGINES)} |", f"|---|{':-:|' * len(ENGINES)}"]
    return "\n".join(
        [*lines, *(f"| {name} | {' | '.join('●' if ran else '' for ran in row)} |" for name, row in rows.items())]
    )


def of_presets() -> str:
    """Each preset as it is built without arguments."""
    network = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    rows = {}
    for name in presets.__all__:
        algorithm = getattr(presets, name)(**({"adapts": "bias"} if name in ("cavia", "lora") else {}))
        needs = algorithm.with_rates(algorithm.initial_rates(network)).needs
        rows[f"`{name}`"] = [coverage.refused(needs, runs) is None for runs in ENGINES.values()]
    return table("preset", rows)


def of_parts() -> str:
    """Each class that an algorithm is made of, and each kind of rate."""

    def row(kind: str, what: Any) -> list[bool]:
        return [what in runs.get(kind, ()) for runs in ENGINES.values()]

    class Own:
        """Stands for whatever is not known."""

    loops = {f"inner loop `{name}`": row("inner loop", getattr(inner, name)) for name in ("SGD", "Adam")}
    parts = {
        f"part `{name}`": row("part", part)
        for name in dir(inner)
        if isinstance(part := getattr(inner, name), type) and hasattr(part, "__dataclass_fields__")
        if name not in ("At", "SGD", "Adam", "InnerLoop")
    }
    rates = {
        f"rates `{kind}`": row("rates", kind) for kind in ("number", "of each step", "tensor", *get_args(LearnedRate))
    }
    rules = {
        f"rule `{name}`": row("rule", getattr(meta_gradient, name))
        for name in dir(meta_gradient)
        if name in lightning_maml.__all__
    }
    own = {f"{kind} of your own": row(kind, Own) for kind in ("inner loop", "part", "rule")}
    losses = {f"loss `{name}`": row("loss", name) for name in ("mse", "cross_entropy", "bce")} | {
        "another loss": row("loss", Own),
        "`query_loss`": row("query loss", Own),
        "`task_weights`": row("task weights", True),
        "inputs of several tensors": row("inputs", "several tensors"),
    }
    norms = {f'`batch_norm="{mode}"`': row("batch-norm", mode) for mode in get_args(BatchNorm)}
    return table("needs", loops | parts | rates | rules | losses | norms | own)


PAGE = Path(__file__).with_name("engines.md")
PARTS = {"presets": of_presets, "parts": of_parts}

if __name__ == "__main__":
    marked.main(PAGE, "who_runs_what.py", PARTS)
