"""MetaRLModule under Lightning's Trainer and on the command line: small runs; what learning achieves is marked slow."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

import processes
from lightning_maml import MLP, Algorithm, maml, maml_pp, meta_sgd, pretrained
from lightning_maml.cli.command_line import main
from lightning_maml.rl import (
    PPO,
    TRPO,
    Advantages,
    CategoricalPolicy,
    Environment,
    EnvironmentTasks,
    GaussianPolicy,
    MetaObjective,
    MetaRLModule,
    Navigation2D,
)


def _module(algorithm: Algorithm | None = None, **options: Any) -> MetaRLModule:
    settings: dict[str, Any] = {"trajectories": 3, "test_trajectories": 2, "test_steps": 2, **options}
    policy = GaussianPolicy(2, 2, hidden=[5], activation="tanh")
    return MetaRLModule(policy, algorithm or maml(0.1, 1), Navigation2D(horizon=4), **settings)


def _tasks(**options: Any) -> EnvironmentTasks:
    settings: dict[str, Any] = {"batches_per_epoch": 2, "val_tasks": 2, "test_tasks": 5, **options}
    return EnvironmentTasks(Navigation2D(horizon=4), 3, **settings)


def _trainer(folder: Path, **options: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "max_epochs": 1}
    return Trainer(default_root_dir=folder, **{**quiet, **options})


@pytest.mark.parametrize(
    "algorithm, options",
    [
        (maml(0.1, 1), {"scheduler": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1)}),
        (maml(0.1, 2), {"outer": TRPO()}),
        (maml(0.1, 1), {"kl_penalty": 0.1, "exploration": 0.1, "outer": PPO(epochs=2), "gradient_clip_val": 0.5}),
        (meta_sgd(0.1, 1), {"estimator": "loaded_dice"}),
        (pretrained(0.1, 1), {"engine": "eager", "kl_penalty": 0.1}),
    ],
    ids=["ppo", "trpo", "promp", "meta_sgd", "pretrained"],
)
def test_fits_and_tests(tmp_path: Path, algorithm: Algorithm, options: dict[str, Any]) -> None:
    module, tasks = _module(algorithm, **options), _tasks()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    trainer = _trainer(tmp_path, logger=False)
    trainer.fit(module, tasks)
    logged = trainer.callback_metrics
    assert {"train/return_before", "train/return_after", "train/kl", "val/return", "val/return_step_0"} <= set(logged)
    changed = [not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)]
    assert all(changed)
    (result,) = trainer.test(module, tasks, verbose=False)
    assert {f"test/return_step_{step}" for step in range(3)} <= set(result)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert (written["tasks"], written["inner_steps"], written["algorithm"]) == (5, [0, 1, 2], algorithm.name)
    assert written["return"]["mean"][2] == pytest.approx(result["test/return_step_2"])


def test_schedules_go_by_the_outer_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    call = MetaObjective.__call__

    def recorded(self: MetaObjective, rollouts: Any) -> Any:
        seen.append(self.algorithm.meta_gradient.update)  # type: ignore[attr-defined]
        return call(self, rollouts)

    monkeypatch.setattr(MetaObjective, "__call__", recorded)
    module = _module(maml_pp(0.1, 2, multi_step_updates=3), outer=PPO(epochs=2))
    _trainer(tmp_path, logger=False).fit(module, _tasks())
    assert seen == [0, 1, 2, 3]


def test_trpo_moves_within_its_trust_region(tmp_path: Path) -> None:
    module = _module(outer=TRPO(max_kl=0.003), trajectories=10)
    trainer = _trainer(tmp_path, logger=False, limit_val_batches=0)
    trainer.fit(module, _tasks(batches_per_epoch=3))
    assert 0 < trainer.callback_metrics["train/kl"] <= 0.003


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def trained(folder: str, epochs: int, checkpoint: Path | None = None) -> Trainer:
        seed_everything(0, verbose=False)
        trainer = _trainer(tmp_path / folder, max_epochs=epochs, logger=False)
        trainer.fit(_module(), _tasks(), ckpt_path=checkpoint)
        return trainer

    whole = trained("whole", 2).lightning_module.state_dict()
    first = trained("first", 1)
    torch.manual_seed(99)
    assert first.checkpoint_callback is not None
    resumed = trained("second", 2, Path(first.checkpoint_callback.best_model_path)).lightning_module.state_dict()
    assert any(not torch.equal(value, first.lightning_module.state_dict()[name]) for name, value in resumed.items())
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_logs_count_meta_iterations(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, logger=CSVLogger(tmp_path, "", ""), log_every_n_steps=1, max_epochs=2)
    trainer.fit(_module(), _tasks())
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["train/return_after"]] == [1, 2, 3, 4]
    assert [int(row["step"]) for row in rows if row["val/return"]] == [2, 4]
    assert trainer.global_step == 4 * PPO().epochs


def test_adapted_policies_act_and_are_exported(tmp_path: Path) -> None:
    module = _module()
    adapted = module.adapt(torch.tensor([[0.3, 0.2], [-0.4, 0.1]]))
    assert adapted.returns.shape == (2, 3)
    policy = adapted.policy(1)
    torch.testing.assert_close(policy.head.bias, adapted.parameters["head.bias"][1])
    assert not torch.equal(policy.head.bias, module.policy.head.bias)
    observation = torch.tensor([0.1, -0.1])
    assert torch.equal(policy.act(observation, deterministic=True), policy(observation)[:2].detach())
    torch.export.save(torch.export.export(policy, (torch.zeros(1, 2),)), tmp_path / "policy.pt2")
    again = torch.export.load(tmp_path / "policy.pt2").module()
    torch.testing.assert_close(again(observation[None]), policy(observation[None]))


def test_prediction_gives_the_adapted_parameters(tmp_path: Path) -> None:
    predicted = _trainer(tmp_path, logger=False).predict(_module(), _tasks())
    assert predicted is not None
    assert [part["head.weight"].shape[0] for part in predicted] == [3, 2]  # type: ignore[index]


def test_test_rates_are_those_of_the_test() -> None:
    module, goals = _module(test_rates=[0.1, 1e-9]), torch.tensor([[0.3, 0.2]])
    torch.manual_seed(1)
    once = module.adapt(goals, steps=1).parameters["head.bias"]
    torch.manual_seed(1)
    torch.testing.assert_close(module.adapt(goals, steps=2).parameters["head.bias"], once)
    with pytest.raises(ValueError, match="Expected at most 2 steps"):
        module.adapt(goals, steps=3)


class Bandit(Environment):
    """One time step and 3 actions, of which that of the task is rewarded: a discrete environment of a user's own."""

    observation_size, action_size, discrete, horizon = 1, 3, True, 1

    def sample_tasks(self, tasks: int, generator: torch.Generator) -> Tensor:
        return torch.randint(3, (tasks, 1), generator=generator).float()

    def reset(self, tasks: Tensor, trajectories: int) -> tuple[None, Tensor]:
        return None, tasks.new_ones(len(tasks), trajectories, 1)

    def step(self, tasks: Tensor, state: None, actions: Tensor) -> tuple[None, Tensor, Tensor, Tensor]:
        rewards = (actions == tasks).to(tasks.dtype)
        return None, torch.ones_like(rewards)[..., None], rewards, torch.ones_like(rewards, dtype=torch.bool)


def test_learns_a_bandit_by_adaptation_alone(tmp_path: Path) -> None:
    # Without adaptation no policy gains more than 1/3; with one step of it, all of them can.
    seed_everything(0, verbose=False)
    policy = CategoricalPolicy(1, 3, hidden=[])
    module = MetaRLModule(
        policy,
        maml(2.0, 1),
        Bandit(),
        trajectories=30,
        advantages=Advantages(baseline=False),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.05),
    )
    tasks = EnvironmentTasks(Bandit(), 20, batches_per_epoch=20, val_tasks=0, test_tasks=100)
    trainer = _trainer(tmp_path, logger=False)
    trainer.fit(module, tasks)
    (result,) = trainer.test(module, tasks, verbose=False)
    assert result["test/return_step_0"] < 0.45
    assert result["test/return_step_1"] > 0.85


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"trajectories": 0}, ValueError, "Expected `trajectories` to be a whole number of at least 1 but got 0"),
        ({"test_rates": [0.1]}, ValueError, "a rate in `test_rates` for each of 2 test steps"),
        ({"gradient_clip_val": 0.0}, ValueError, "Expected `gradient_clip_val` to be positive"),
        ({"outer": TRPO(), "optimizer": torch.optim.Adam}, ValueError, "Expected neither `optimizer` nor"),
        ({"estimator": "dice"}, ValueError, "Expected `estimator` to be one of"),
        ({"algorithm": "maml"}, TypeError, "Expected `algorithm` to be one such as"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _module(**options)


def test_another_module_is_no_policy() -> None:
    with pytest.raises(TypeError, match="Expected `policy` to be a Policy, as GaussianPolicy, but got MLP"):
        MetaRLModule(MLP(2, [3], 2), maml(), Navigation2D())  # type: ignore[arg-type]


class Infinite(Navigation2D):
    def step(self, tasks: Tensor, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        place, seen, rewards, done = super().step(tasks, state, actions)
        return place, seen, rewards * torch.inf, done


@pytest.mark.parametrize("outer, where", [(PPO(), " in meta-iteration 1: use"), (TRPO(), ": use")])
def test_a_meta_gradient_that_is_not_finite_ends_training_with_its_cause(
    tmp_path: Path, outer: Any, where: str
) -> None:
    policy = GaussianPolicy(2, 2, hidden=[5])
    module = MetaRLModule(policy, maml(0.1, 1), Infinite(horizon=3), outer=outer, trajectories=2)
    with pytest.raises(ValueError, match=f"Expected a finite meta-gradient but it is nan{where}"):
        _trainer(tmp_path, logger=False, num_sanity_val_steps=0).fit(module, _tasks())


# The command line


def _configured(repository: Path, folder: Path) -> list[str]:
    """The options that make a run of a configuration small."""
    small = {
        "model.trajectories": 2,
        "model.test_trajectories": 2,
        "data.environment.horizon": 4,
        "data.batches_per_epoch": 2,
        "data.val_tasks": 2,
        "data.test_tasks": 3,
        "data.tasks_per_batch": 2,
        "trainer.max_epochs": 1,
        "trainer.enable_progress_bar": "false",
        "trainer.logger": "lightning.pytorch.loggers.CSVLogger",
        "trainer.logger.save_dir": str(folder),
    }
    options = [part for key, value in small.items() for part in (f"--{key}", str(value))]
    return ["--config", str(repository / "configs/rl_navigation.yaml"), *options]


@pytest.mark.parametrize("algorithm", ["maml", "pretrained"])
def test_command_line(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], algorithm: str) -> None:
    options = _configured(repository, tmp_path)
    if algorithm == "pretrained":  # the control
        options += ["--model.algorithm", "lightning_maml.pretrained"]
    assert main(["fit", *options]) == 0
    assert main(["test", *options, "--ckpt_path", "last"]) == 0
    said = capsys.readouterr().out
    assert f"Test of {algorithm} on 3 tasks, 2 trajectories each" in said
    assert "  inner step  " in said
    written = json.loads((tmp_path / "lightning_logs/version_1/metrics.json").read_text())
    assert written["inner_steps"] == [0, 1, 2, 3, 4]
    assert written["rates"] == [0.1, 0.05, 0.05, 0.05]
    assert written["checkpoint"].endswith("last.ckpt")
    again = MetaRLModule.load_from_checkpoint(written["checkpoint"], environment=Navigation2D(horizon=4))
    assert again.adapt(torch.zeros(1, 2)).returns.shape == (1, 5)
    with pytest.raises(FileNotFoundError):
        MetaRLModule.load_from_checkpoint(tmp_path / "none.ckpt", environment=Navigation2D())


# Several processes


def _train(folder: str) -> Any:
    seed_everything(0, verbose=False)
    module = _module(gradient_clip_val=1.0)
    torch.manual_seed(int(os.environ["RANK"]))  # other rollouts in each
    trainer = _trainer(Path(folder), logger=False, devices=2, strategy="ddp", enable_checkpointing=False)
    trainer.fit(module, _tasks())
    return {name: value.clone() for name, value in module.policy.state_dict().items()}


@pytest.mark.slow
def test_processes_share_the_tasks_and_agree(tmp_path: Path) -> None:
    first, second = processes.run(_train, tmp_path, 2, str(tmp_path / "run"))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


# What learning achieves


@pytest.mark.slow
def test_navigation_is_learned_and_the_control_does_not_adapt(tmp_path: Path) -> None:
    def returns(algorithm: Algorithm) -> list[float]:
        seed_everything(0, verbose=False)
        module = MetaRLModule(
            GaussianPolicy(2, 2),
            algorithm,
            Navigation2D(),
            outer=PPO(epochs=3),
            optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.002),
        )
        tasks = EnvironmentTasks(Navigation2D(), 20, batches_per_epoch=50, val_tasks=0)
        trainer = _trainer(tmp_path, logger=False, enable_checkpointing=False)
        trainer.fit(module, tasks)
        (result,) = trainer.test(module, tasks, verbose=False)
        return [float(result[f"test/return_step_{step}"]) for step in (0, 1)]

    before, after = returns(maml(0.1, 1))
    assert after >= -14
    assert after - before >= 22
    assert returns(pretrained(0.1, 1))[1] <= -25
