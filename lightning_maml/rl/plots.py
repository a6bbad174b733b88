"""What adaptation does, to look at: ways through the plane before and after."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from lightning_maml.checks import check_whole
from lightning_maml.rl.environments import Rollouts
from lightning_maml.rl.module import MetaRLModule

COLORS = ("#9a9a9a", "#e69f00", "#0072b2")  # before, after the first step, after the last


def trajectories_figure(goals: Tensor, rollouts: Sequence[Rollouts], trajectories: int = 3) -> Any:
    """A plotly figure of some trajectories of each task: before adaptation, after one step, and after the last.

    Args:
        goals: ``[T, 2]``.
        rollouts: before and after each inner step, of observations ``[T, N, H, 2]`` that are places.
        trajectories: how many of each task and step are shown.

    ImportError where plotly is not installed, ValueError where goals or observations are no places in the plane.
    """
    try:
        from plotly.subplots import make_subplots
    except ImportError as error:
        raise ImportError("Expected plotly to be installed for plots: pip install 'lightning-maml[report]'.") from error
    shape = rollouts[0].observations.shape
    if goals.ndim != 2 or goals.shape[1] != 2 or shape[-1] != 2 or shape[0] != len(goals):
        raise ValueError(
            "Expected `goals` [T, 2] and observations [T, N, H, 2], places in the plane, but got "
            f"{list(goals.shape)} and {list(shape)}."
        )
    steps = sorted({0, min(1, len(rollouts) - 1), len(rollouts) - 1})
    means = [rollouts[step].returns.mean(1).tolist() for step in steps]
    titles = ["return " + " → ".join(f"{mean[task]:.1f}" for mean in means) for task in range(len(goals))]
    figure = make_subplots(1, len(goals), subplot_titles=titles, shared_yaxes=True)
    for task, goal in enumerate(goals.tolist(), start=1):
        for step, color in zip(steps, COLORS, strict=False):
            ways = rollouts[step].observations[task - 1], rollouts[step].mask[task - 1].bool()
            shown = islice(zip(*ways, strict=True), trajectories)
            x, y = zip(*(place for seen, mask in shown for place in (*seen[mask].tolist(), (None, None))), strict=True)
            name = "before adaptation" if step == 0 else f"after {step} step{'s' if step > 1 else ''}"
            style = {"mode": "lines", "line": {"color": color, "width": 1.5}, "name": name, "legendgroup": name}
            figure.add_scatter(x=x, y=y, showlegend=task == 1, row=1, col=task, **style)
        star = {"symbol": "star", "size": 14, "color": "#d55e00", "line": {"color": "white", "width": 1}}
        legend = {"name": "goal", "legendgroup": "goal", "showlegend": task == 1}
        figure.add_scatter(x=[goal[0]], y=[goal[1]], mode="markers", marker=star, row=1, col=task, **legend)
        figure.update_yaxes(scaleanchor=f"x{task if task > 1 else ''}", row=1, col=task)
    axis = {"range": [-0.8, 0.8], "zeroline": True, "zerolinecolor": "#dddddd", "gridcolor": "#eeeeee"}
    figure.update_xaxes(constrain="domain", **axis).update_yaxes(constrain="domain", **axis)
    size = {"height": 420, "width": 320 * len(goals) + 40}
    return figure.update_layout(template="plotly_white", **size, legend={"orientation": "h", "y": -0.12})


class PlotTrajectories(Callback):
    """Writes ``trajectories.html`` after a test: the ways of some held-out tasks before and after adaptation.

    On the command line: ``--trainer.callbacks lightning_maml.rl.PlotTrajectories``. It needs plotly, of the extra
    ``report``, and an environment whose observations are places in the plane.

    Args:
        tasks: how many are shown, 1 or more.
    """

    def __init__(self, tasks: int = 4) -> None:
        check_whole(1, tasks=tasks)
        self.tasks = tasks

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, MetaRLModule):
            raise TypeError(f"Expected a MetaRLModule to plot the trajectories of but got {type(pl_module).__name__}.")
        folder = trainer.log_dir or trainer.default_root_dir  # on every process: Lightning broadcasts it
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        stream: Any = trainer.datamodule  # type: ignore[attr-defined]
        goals = stream.sample("test", 0, pl_module.device)[: self.tasks]
        figure = trajectories_figure(goals, pl_module.rollouts(goals))
        path = Path(folder) / "trajectories.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.write_html(path)
        rank_zero_info(f"Written to {path}")
