"""MAML and its family for PyTorch Lightning: a batch of tasks in, adapted networks and one meta-gradient out."""

from lightning_maml.adaptation import Adapted, Evaluation, adapt, evaluate, meta_loss
from lightning_maml.data import Learn2LearnTasks, OmniglotTasks, SinusoidTasks
from lightning_maml.engine import Batched, Eager, Engine, Fused, MetaOutput
from lightning_maml.inner import SGD, Rates
from lightning_maml.learner import Algorithm
from lightning_maml.meta_gradient import FirstOrder, Joint, Unrolled
from lightning_maml.module import MetaModule
from lightning_maml.networks import MLP, Conv4
from lightning_maml.presets import fomaml, maml, pretrained
from lightning_maml.tasks import TaskBatch

__all__ = [
    "MLP",
    "SGD",
    "Adapted",
    "Algorithm",
    "Batched",
    "Conv4",
    "Eager",
    "Engine",
    "Evaluation",
    "FirstOrder",
    "Fused",
    "Joint",
    "Learn2LearnTasks",
    "MetaModule",
    "MetaOutput",
    "OmniglotTasks",
    "Rates",
    "SinusoidTasks",
    "TaskBatch",
    "Unrolled",
    "adapt",
    "evaluate",
    "fomaml",
    "maml",
    "meta_loss",
    "pretrained",
]
