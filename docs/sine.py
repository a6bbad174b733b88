"""Draws docs/sine.svg: MAML adapting to a sine that it has never seen, beside the pretrained network.

``python docs/sine.py`` trains both by the recipe of ``lightning-maml demo``, which takes a minute, and needs the extra
``report``. ``--updates`` trains for less or more, and ``--to`` names another file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from matplotlib import rcParams
from torch import Tensor

from lightning_maml import adapt
from lightning_maml.cli.demo import ALGORITHMS, train

SEED = 0
UPDATES = 10_000
AMPLITUDE, PHASE = 3.5, 1.0
SUPPORT = [
    [-3.6],
    [-2.1],
    [-0.4],
    [0.9],
    [2.2],
]  # none to the right of 2.2: how the sine goes on there, training has taught
STEPS = {0: ":", 1: "--", 10: "-"}
INK = "#808890"  # is read on white and on black
COLOURS = {"MAML": "#2f81f7", "pretrained": "#d9622b"}


def sine(x: Tensor) -> Tensor:
    """The task: what both networks are to learn from five examples."""
    return AMPLITUDE * torch.sin(x - PHASE)


def curves(name: str, updates: int, grid: Tensor) -> dict[int, Tensor]:
    """Predictions ``[N, 1]`` on ``grid`` after some inner steps, by a network trained by the demo's recipe."""
    module, _ = train(name, updates, SEED)
    x = torch.tensor(SUPPORT)[None]
    return {
        steps: adapt(
            module.network, ALGORITHMS[name].with_steps(steps), x, sine(x), loss="mse", safeguard=True
        ).predict(grid[None])[0]
        if steps
        else module.network(grid).detach()
        for steps in STEPS
    }


def draw(updates: int, to: Path) -> None:
    """Trains both and writes the picture."""
    rcParams.update(
        {
            "svg.fonttype": "none",  # letters as text, which the reader's own font draws
            "svg.hashsalt": "sine",  # the same file from the same curves
            "font.family": "sans-serif",
            "font.size": 11,
            **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
        }
    )
    grid = torch.linspace(-5, 5, 101)[:, None]
    support = torch.tensor(SUPPORT)
    figure, axes = plt.subplots(1, len(ALGORITHMS), figsize=(9, 3.9), sharey=True, layout="constrained")
    for axis, name in zip(axes, ALGORITHMS, strict=True):
        axis.plot(grid, sine(grid), color=INK, linewidth=5, alpha=0.35, label="the new sine")
        for (steps, style), curve in zip(STEPS.items(), curves(name, updates, grid).values(), strict=True):
            label = {0: "before", 1: "after 1 step"}.get(steps, f"after {steps} steps")
            axis.plot(grid, curve, style, color=COLOURS[name], linewidth=1.8, label=label)
        axis.plot(support, sine(support), "o", color=INK, markersize=7, label="its 5 examples")
        axis.set(title=name, xlim=(-5, 5), ylim=(-1.2 * AMPLITUDE, 1.2 * AMPLITUDE), xticks=range(-4, 5, 2))
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, frameon=False, fontsize=9)
    figure.savefig(to, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=UPDATES, help=f"of each network (default: {UPDATES:,})")
    parser.add_argument("--to", type=Path, default=Path(__file__).with_name("sine.svg"))
    options = parser.parse_args()
    draw(options.updates, options.to)
