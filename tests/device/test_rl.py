"""Reinforcement learning on the stand-in device: navigation, two meta-iterations, and who waited for the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_maml import Batched, maml
from lightning_maml.rl import (
    PPO,
    TRPO,
    CategoricalPolicy,
    Collector,
    EnvironmentTasks,
    GaussianPolicy,
    GymnasiumTasks,
    MetaRLModule,
    Navigation2D,
)
from lightning_maml.rl.adaptation import MetaObjective
from lightning_maml.saving import BestCheckpoint
from same import assert_same
from standin import DEVICE, host_copies
from test_training import UNFUSED, trainer


def module(**more: Any) -> MetaRLModule:
    seed_everything(0, verbose=False)
    given = {"trajectories": 4, "test_trajectories": 5, "engine": "batched"} | more
    if not isinstance(given.get("outer"), TRPO):
        given.setdefault("optimizer", UNFUSED)
    made = MetaRLModule(GaussianPolicy(2, 2, hidden=[8]), maml(0.1, 2), Navigation2D(horizon=6), **given)
    torch.manual_seed(0)
    return made


def data(batches_per_epoch: int = 2) -> EnvironmentTasks:
    return EnvironmentTasks(Navigation2D(horizon=6), 3, batches_per_epoch=batches_per_epoch, val_tasks=3, test_tasks=3)


OUTER = {"ppo": PPO(epochs=3), "trpo": TRPO(max_kl=0.01, cg_steps=4)}


@pytest.mark.parametrize("engine", ["eager", "batched", Batched(chunk_size=2)])
@pytest.mark.parametrize("outer", OUTER)
def test_two_meta_iterations_validation_test_and_prediction(tmp_path: Path, outer: str, engine: Any) -> None:
    def run(device: torch.device) -> list[Any]:
        one = module(outer=OUTER[outer], engine=engine)
        # (Lightning's look at validation, before it all, brings back the generators of the CPU and of CUDA alone)
        runs = trainer(device, tmp_path, max_epochs=1, num_sanity_val_steps=0)
        runs.fit(one, data())
        found = [runs.validate(one, data(), verbose=False), runs.test(one, data(), verbose=False)]
        predicted = runs.predict(one, data())
        return [found, [value.to(device) for value in (*one.state_dict().values(), *tree_leaves(predicted))]]

    assert_same(run)


@pytest.mark.parametrize("estimator", ["loaded_dice", "maml", "first_order"])
def test_estimators_penalties_and_exploration(tmp_path: Path, estimator: str) -> None:
    def run(device: torch.device) -> list[Any]:
        one = module(estimator=estimator, kl_penalty=0.1, exploration=0.1, gradient_clip_val=0.5)
        trainer(device, tmp_path, max_epochs=1, limit_val_batches=0).fit(one, data())
        return [value.to(device) for value in one.state_dict().values()]

    assert_same(run)


def test_the_policies_are_modules_of_the_device() -> None:
    tasks = torch.tensor([[0.2, 0.1], [-0.3, 0.4]])

    def run(device: torch.device) -> list[Any]:
        one = module().to(device)
        torch.manual_seed(3)
        adapted = one.adapt(tasks.to(device))
        seen = torch.zeros(3, 2, device=device)
        return [adapted.returns, adapted.policy(1)(seen), adapted.policy(0).act(seen)]

    assert_same(run)


def test_actions_that_are_numbers() -> None:
    def run(device: torch.device) -> list[Any]:
        torch.manual_seed(0)
        policy = CategoricalPolicy(3, 4, hidden=[5]).to(device)
        torch.manual_seed(1)
        outputs = policy(torch.ones(6, 3, device=device))
        actions = policy.sample(outputs)
        return [actions, policy.mode(outputs), policy.log_probs(outputs, actions), policy.kl(outputs, outputs.flip(0))]

    assert_same(run, host=0)


def test_a_run_of_reinforcement_learning_goes_on(tmp_path: Path) -> None:
    def run(device: torch.device) -> list[Any]:
        ends = []
        for stops in ((2,), (1, 2)):  # meta-iterations
            last = None
            for epochs in stops:
                one, folder = module(), tmp_path / f"{device.type}{len(stops)}{epochs}"
                best = BestCheckpoint(folder, monitor="val/return", mode="max", save_last=True)
                saved = {"enable_checkpointing": True, "callbacks": [best]}
                runs = trainer(device, folder, max_epochs=epochs, num_sanity_val_steps=0, **saved)
                runs.fit(one, data(batches_per_epoch=1), ckpt_path=last)
                last = folder / "last.ckpt"
            ends.append([value.to(device) for value in one.state_dict().values()])
        assert all(torch.equal(value, other) for value, other in zip(*ends, strict=True))
        return ends

    assert_same(run)


# Who waits for the device: once for each outer step, and once for each step of a line search


def waits_of(one: MetaRLModule, folder: Path) -> tuple[list[str], list[str]]:
    """In which lines two meta-iterations of the library, and Lightning in its loops, waited."""
    runs = trainer(DEVICE, folder, max_epochs=1, limit_val_batches=0)
    with host_copies() as copies:
        runs.fit(one, data())
    return (
        [each for each in copies.in_library() if "metrics.py" not in each],  # which go back to the CPU at the end
        [each for each in copies.of if "/loops/" in each or "/optim" in each],
    )


def test_ppo_waits_once_for_each_outer_step(tmp_path: Path) -> None:
    """Is the meta-gradient finite? Rollouts, advantages and inner steps are never waited for."""
    own, of_loops = waits_of(module(outer=OUTER["ppo"]), tmp_path)
    assert len(own) == 2 * 3, own
    assert not of_loops


@pytest.mark.parametrize("max_kl", [0.01, 100.0])
def test_trpo_waits_once_and_once_for_each_step_of_the_line_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_kl: float
) -> None:
    asked: list[int] = []
    evaluate = MetaObjective.loss_and_kl

    def counted(self: MetaObjective, rollouts: Any) -> Any:
        asked.append(1)
        return evaluate(self, rollouts)

    monkeypatch.setattr(MetaObjective, "loss_and_kl", counted)
    own, of_loops = waits_of(module(outer=TRPO(max_kl=max_kl, cg_steps=4)), tmp_path)
    searched = len(asked) - 2  # the first of each meta-iteration is before the search
    assert searched > 2 if max_kl > 1 else searched >= 2
    assert len(own) == 2 + searched, own
    assert not of_loops


def test_an_environment_that_waits_is_noticed(tmp_path: Path) -> None:
    class Waiting(Navigation2D):
        def step(self, tasks: Tensor, state: Any, actions: Tensor) -> Any:
            found = super().step(tasks, state, actions)
            assert not found[3].all()  # as one writes it on the CPU
            return found

    one = module(outer=OUTER["ppo"])
    one.environment = Waiting(horizon=6)
    runs = trainer(DEVICE, tmp_path, max_epochs=1, limit_val_batches=0)
    with host_copies() as copies:
        runs.fit(one, data())
    assert len([each for each in copies.of if "test_rl.py" in each or "environments.py" in each]) == 2 * 3 * 6


def test_simulators_on_the_host_get_their_actions_in_one_copy_a_step() -> None:
    pytest.importorskip("gymnasium", reason="needs gymnasium")
    import test_rl_gymnasium  # noqa: F401  # registers a point on a line

    environment = GymnasiumTasks("tests/Line-v0", horizon=4)
    collect = Collector(environment, GaussianPolicy(1, 1, hidden=[4]).to(DEVICE), torch.zeros(2, 1, device=DEVICE), 3)
    with host_copies() as copies:
        rollouts = collect(
            {name: value.expand(2, *value.shape) for name, value in collect.policy.named_parameters()}, 0
        )
    assert rollouts.rewards.device == rollouts.observations.device == DEVICE
    assert len(copies) == 1 + 4, copies.of  # the goals, and the actions of each step
