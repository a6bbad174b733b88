"""MAML and its family for PyTorch Lightning: a batch of tasks in, adapted networks and one meta-gradient out."""

from importlib.metadata import version

from lightning_maml import presets
from lightning_maml.adaptation import Adapted, Evaluation, adapt, evaluate, meta_loss
from lightning_maml.data import Learn2LearnTasks, OmniglotTasks, SinusoidTasks
from lightning_maml.engine import Batched, Eager, Engine, Fused, Graphed, MetaOutput
from lightning_maml.inner import SGD, Adam, Part, Prototypes, Rates, SharpnessAware, Sign, Zeros
from lightning_maml.learner import Algorithm
from lightning_maml.meta_gradient import FirstOrder, Implicit, Joint, MultiStep, Reptile, Unrolled
from lightning_maml.networks import MLP, Conv4, ResNet12
from lightning_maml.presets import *  # noqa: F403
from lightning_maml.saving.weights import load_adapted, save_adapted
from lightning_maml.tasks import TaskBatch
from lightning_maml.training.module import MetaModule

__all__ = ["Adapted", "Evaluation", "MetaModule", "TaskBatch", "adapt", "evaluate", "meta_loss"]
__all__ += ["Learn2LearnTasks", "OmniglotTasks", "SinusoidTasks"]
__all__ += ["Batched", "Eager", "Engine", "Fused", "Graphed", "MetaOutput"]
__all__ += ["SGD", "Adam", "Algorithm", "Part", "Prototypes", "Rates", "SharpnessAware", "Sign", "Zeros"]
__all__ += ["FirstOrder", "Implicit", "Joint", "MultiStep", "Reptile", "Unrolled"]
__all__ += ["MLP", "Conv4", "ResNet12", "load_adapted", "save_adapted"]
__all__ += presets.__all__


def __getattr__(name: str) -> str:
    # asked of the metadata only when it is wanted: a copy of the sources that was never installed imports, too
    if name == "__version__":
        return version("lightning-maml")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
