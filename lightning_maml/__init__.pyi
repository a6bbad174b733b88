from lightning_maml import adaptation, checks, cli, data, engine, inner, learner, losses, meta_gradient, metrics
from lightning_maml import networks, presets, rl, saving, tasks, trained, training
from lightning_maml.adaptation import Adapted, Evaluation, adapt, evaluate, meta_loss
from lightning_maml.data import CIFARFSTasks, FC100Tasks, Learn2LearnTasks, MiniImagenetTasks
from lightning_maml.data import OmniglotTasks, SinusoidTasks, TableTasks
from lightning_maml.engine import Batched, Eager, Engine, Fused, Graphed, MetaOutput
from lightning_maml.inner import SGD, Adam, OneHead, Part, Prototypes, Rates, SharpnessAware, Sign, Zeros
from lightning_maml.learner import Algorithm
from lightning_maml.meta_gradient import FirstOrder, Implicit, Joint, MultiStep, Reptile, Unrolled, ZeroOrder
from lightning_maml.networks import MLP, Conv4, ResNet12, Sine
from lightning_maml.presets import anil, boil, cavia, fomaml, imaml, lora, maml, maml_pp, meta_curvature, meta_sgd
from lightning_maml.presets import pretrained, proto_maml, reptile, unicorn_maml
from lightning_maml.saving.export import export
from lightning_maml.saving.weights import load_adapted, save_adapted
from lightning_maml.tasks import TaskBatch, UnequalTasks
from lightning_maml.trained import from_pretrained
from lightning_maml.training.module import MetaModule

__version__: str
__all__: list[str]
