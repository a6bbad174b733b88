"""Reinforcement learning in the plane: the ways of a policy before and after each inner step."""

from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lightning_maml import saving
from lightning_maml.report.page import Picture, Section, place, slider
from lightning_maml.report.run import Run
from lightning_maml.rl import EnvironmentTasks, MetaRLModule
from lightning_maml.rl.environments import Rollouts

TASKS, WAYS = 4, 3
"""How many test tasks are shown, and how many ways of each."""


def trajectories(run: Run, module: MetaRLModule | None, stream: Any) -> Section:
    """The ways of four test tasks, collected anew, as a slider goes through the inner steps.

    Raises:
        ValueError: there is no checkpoint, or observations are no places in the plane.
        FileNotFoundError: the checkpoint is gone.
    """
    if stream is None:
        stream = saving.build(EnvironmentTasks, run.section("data").get("init_args", {}), {})
    if module is None:
        if run.checkpoint is None:
            raise ValueError("Expected a checkpoint in the run's folder but found none.")
        module = MetaRLModule.load_from_checkpoint(run.checkpoint, map_location="cpu", environment=stream.environment)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        goals = stream.sample("test", 0)[:TASKS]
        rollouts = module.cpu().eval().rollouts(goals)
    if goals.shape[-1] != 2 or rollouts[0].observations.shape[-1] != 2:
        raise ValueError("Expected observations that are places in the plane, which alone have ways to draw.")
    walked = torch.stack([one.observations[:, :WAYS].abs().max() for one in rollouts])
    reach = 1.05 * max(walked.max().item(), goals.abs().max().item())
    pictures, cells = {}, []
    for task, goal in enumerate(goals):
        pictures[f"way-{task}"] = _picture(goal, [_ways(one, task) for one in rollouts], reach)
        returns = [one.returns[task].mean().item() for one in rollouts]
        drawing = place(f"way-{task}", f"Task {task}: ways of the policy and the goal in the plane", 300)
        cells.append(f"<div><h3>Task {task}: return {returns[0]:.1f}, then {returns[-1]:.1f}</h3>{drawing}</div>")
    says = (
        "Each line is a way of the policy from the origin; the star is the goal, which the policy is not told. "
        "Move the slider: at step 0 one policy walks in every task."
    )
    body = slider("way-step", "After inner step", len(rollouts) - 1) + f'<div class="grid">{"".join(cells)}</div>'
    return Section("Ways to the goal, step by step", says, body, pictures)


def _ways(rollouts: Rollouts, task: int) -> list[list[float | None]]:
    """Coordinates ``[x, y]`` of a task's first ways, one after another with a gap between them."""
    shown = islice(zip(rollouts.observations[task], rollouts.mask[task].bool(), strict=True), WAYS)
    places = [place for seen, mask in shown for place in (*seen[mask].tolist(), (None, None))]
    return [[at[axis] for at in places] for axis in (0, 1)]


def _picture(goal: Tensor, ways: list[list[list[float | None]]], reach: float) -> Picture:
    line = {"mode": "lines", "line": {"color": "--one", "width": 1.5}, "name": "ways"}
    star = {"symbol": "star", "size": 15, "color": "--two"}
    point = {"x": [goal[0].item()], "y": [goal[1].item()], "mode": "markers", "marker": star, "name": "goal"}
    axis = {"range": [-reach, reach], "zeroline": True}
    upward = {**axis, "scaleanchor": "x"}
    data = [{**line, "x": ways[-1][0], "y": ways[-1][1]}, point]
    layout = {"showlegend": False, "xaxis": axis, "yaxis": upward}
    return {"data": data, "layout": layout, "frames": [[{"x": x, "y": y}] for x, y in ways], "slider": "way-step"}
