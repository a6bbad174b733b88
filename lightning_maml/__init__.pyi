from lightning_maml import adaptation as adaptation, checks as checks, cli as cli, data as data, engine as engine
from lightning_maml import inner as inner, learner as learner, losses as losses, meta_gradient as meta_gradient
from lightning_maml import metrics as metrics
from lightning_maml import networks as networks, presets as presets, rl as rl, saving as saving, tasks as tasks
from lightning_maml import trained as trained, training as training
from lightning_maml.adaptation import Adapted as Adapted, Evaluation as Evaluation, adapt as adapt, evaluate as evaluate
from lightning_maml.adaptation import meta_loss as meta_loss
from lightning_maml.data import CIFARFSTasks as CIFARFSTasks, FC100Tasks as FC100Tasks
from lightning_maml.data import Learn2LearnTasks as Learn2LearnTasks, MiniImagenetTasks as MiniImagenetTasks
from lightning_maml.data import OmniglotTasks as OmniglotTasks, SinusoidTasks as SinusoidTasks, TableTasks as TableTasks
from lightning_maml.engine import Batched as Batched, Eager as Eager, Engine as Engine, Fused as Fused
from lightning_maml.engine import Graphed as Graphed, MetaOutput as MetaOutput
from lightning_maml.inner import SGD as SGD, Adam as Adam, OneHead as OneHead, Part as Part, Prototypes as Prototypes
from lightning_maml.inner import Rates as Rates, SharpnessAware as SharpnessAware, Sign as Sign, Zeros as Zeros
from lightning_maml.learner import Algorithm as Algorithm
from lightning_maml.meta_gradient import FirstOrder as FirstOrder, Implicit as Implicit, Joint as Joint
from lightning_maml.meta_gradient import MultiStep as MultiStep, Reptile as Reptile, Unrolled as Unrolled
from lightning_maml.meta_gradient import ZeroOrder as ZeroOrder
from lightning_maml.networks import MLP as MLP, Conv4 as Conv4, ResNet12 as ResNet12, Sine as Sine
from lightning_maml.presets import anil as anil, boil as boil, cavia as cavia, fomaml as fomaml, imaml as imaml
from lightning_maml.presets import lora as lora, maml as maml, maml_pp as maml_pp, meta_curvature as meta_curvature
from lightning_maml.presets import meta_sgd as meta_sgd
from lightning_maml.presets import pretrained as pretrained, proto_maml as proto_maml, reptile as reptile
from lightning_maml.presets import unicorn_maml as unicorn_maml
from lightning_maml.saving.export import export as export
from lightning_maml.saving.weights import load_adapted as load_adapted, save_adapted as save_adapted
from lightning_maml.tasks import TaskBatch as TaskBatch, UnequalTasks as UnequalTasks
from lightning_maml.trained import from_pretrained as from_pretrained
from lightning_maml.training.module import MetaModule as MetaModule

__version__: str
__all__: list[str]
