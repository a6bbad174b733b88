"""The picture of trajectories before and after adaptation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_maml import maml
from lightning_maml.rl import (
    EnvironmentTasks,
    GaussianPolicy,
    MetaRLModule,
    Navigation2D,
    PlotTrajectories,
    trajectories_figure,
)

pytest.importorskip("plotly")


def _module() -> MetaRLModule:
    environment = Navigation2D(horizon=6)
    return MetaRLModule(GaussianPolicy(2, 2, hidden=[5]), maml(0.1, 1), environment, test_steps=3, test_trajectories=4)


def test_figure_shows_the_ways_and_the_goals() -> None:
    module, goals = _module(), torch.tensor([[0.3, 0.2], [-0.4, 0.1]])
    rollouts = module.rollouts(goals)
    figure = trajectories_figure(goals, rollouts, trajectories=2)
    assert len(figure.data) == 2 * 4  # of each task before, after one step, after the last, and the goal
    after = figure.data[6]
    assert after.name == "after 3 steps"
    places = rollouts[3].observations[1, :2]
    expected = [*places[0, :, 0].tolist(), None, *places[1, :, 0].tolist(), None]
    assert list(after.x) == [value if value is None else pytest.approx(value) for value in expected]
    star = figure.data[7]
    assert (star.x[0], star.y[0]) == pytest.approx((-0.4, 0.1))
    returns = [float(part.returns[1].mean()) for part in (rollouts[0], rollouts[1], rollouts[3])]
    assert figure.layout.annotations[1].text == "return " + " → ".join(f"{value:.1f}" for value in returns)


def test_figure_of_something_else_is_refused() -> None:
    module = _module()
    with pytest.raises(ValueError, match=r"Expected `goals` \[T, 2\] and observations \[T, N, H, 2\]"):
        trajectories_figure(torch.zeros(3, 2), module.rollouts(torch.zeros(1, 2)))
    with pytest.raises(ValueError, match="Expected `tasks` to be a whole number of at least 1 but got 0"):
        PlotTrajectories(tasks=0)


def test_callback_writes_it_after_a_test(tmp_path: Path) -> None:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "logger": False}
    trainer = Trainer(default_root_dir=tmp_path, callbacks=[PlotTrajectories(tasks=2)], **quiet)
    trainer.test(_module(), EnvironmentTasks(Navigation2D(horizon=6), 3, test_tasks=4), verbose=False)
    assert "return " in (tmp_path / "trajectories.html").read_text()
