"""Where tasks come from: seeded streams, drawn on the training device."""

from lightning_maml.data.cifar import CIFARFSTasks, FC100Tasks, load_cifar100
from lightning_maml.data.dataset import DatasetTasks
from lightning_maml.data.episodes import EpisodeSampler
from lightning_maml.data.folder import FolderTasks
from lightning_maml.data.learn2learn import Learn2LearnTasks, import_learn2learn
from lightning_maml.data.mini_imagenet import MiniImagenetTasks
from lightning_maml.data.omniglot import OmniglotTasks, load_omniglot
from lightning_maml.data.sinusoid import SinusoidTasks
from lightning_maml.data.stream import Positions, TaskStream
from lightning_maml.data.table import TableTasks
from lightning_maml.data.tensors import TensorTasks

__all__ = ["CIFARFSTasks", "DatasetTasks", "FC100Tasks", "FolderTasks", "Learn2LearnTasks", "MiniImagenetTasks"]
__all__ += ["OmniglotTasks", "Positions", "SinusoidTasks", "load_cifar100"]
__all__ += ["EpisodeSampler", "TableTasks", "TaskStream", "TensorTasks", "import_learn2learn", "load_omniglot"]
