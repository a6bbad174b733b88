"""MAML for reinforcement learning: the inner loop is a policy-gradient step on a task's own rollouts."""

from lightning_maml.rl.adaptation import MetaObjective, MetaValue
from lightning_maml.rl.advantages import Advantages
from lightning_maml.rl.environments import Collect, Collector, Environment, Rollouts
from lightning_maml.rl.gymnasium_tasks import GymnasiumTasks
from lightning_maml.rl.module import AdaptedPolicies, MetaRLModule
from lightning_maml.rl.navigation import Navigation2D
from lightning_maml.rl.outer import PPO, TRPO
from lightning_maml.rl.plots import PlotTrajectories, trajectories_figure
from lightning_maml.rl.policies import CategoricalPolicy, GaussianPolicy, Policy
from lightning_maml.rl.tasks import EnvironmentTasks

__all__ = ["PPO", "TRPO", "AdaptedPolicies", "Advantages", "CategoricalPolicy", "Collect", "Collector", "Environment"]
__all__ += ["EnvironmentTasks", "GaussianPolicy", "GymnasiumTasks", "MetaObjective", "MetaRLModule", "MetaValue"]
__all__ += ["Navigation2D", "PlotTrajectories", "Policy", "Rollouts", "trajectories_figure"]
