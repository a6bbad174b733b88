"""Tasks from a folder with a folder of images for each class, and labels for new images from a few examples."""

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_maml.checks import check_one_of, check_seed, check_whole
from lightning_maml.data.augmentation import Augmentation
from lightning_maml.data.class_tasks import ClassTasks, Labelled, check_split, class_columns
from lightning_maml.data.episodes import Rotations
from lightning_maml.data.image_cache import cached_images
from lightning_maml.data.images import class_folders, images_in, read_images, with_channels
from lightning_maml.data.stream import Evaluated, Stage, sizes_of_stages
from lightning_maml.tasks import TaskBatch

Channels = Literal["auto", 1, 3]
"""``"auto"``: 3 where any image has colour, and else 1."""
AT_ONCE = 256  # new images in a batch of prediction, at most; batches are as equal as they can be


class FolderTasks(ClassTasks):
    """Few-shot classification of one's own images; inputs ``[T, N, channels, size, size]`` in [0, 1].

    ``root`` has a folder of images for each class, ``root/<class>/*.png``, of which a seeded choice trains, validates
    and tests; or it has the folders ``train``, ``val`` and ``test``, each of them with a folder for each class. Images
    have any size and one of many formats. They are read once, and kept as one array in the user's cache, see
    :func:`~lightning_maml.data.image_cache.cached_images`.

    Prediction is of the test tasks; with ``examples`` and ``new`` it is of one task, whose support set has all
    examples, as many of a class as there are, and whose queries are the new images, by name.

    Arguments that are not described here are those of :class:`~lightning_maml.data.TaskStream`.

    Args:
        root: the folder.
        ways: ``N``, classes of a task.
        shots: support images of each class.
        queries: query images of each class.
        size: height and width that images are resized to.
        channels: 1 for grey, 3 for colour, or ``"auto"``, see :data:`Channels`.
        split: the shares of classes for training, validation and test, where ``root`` has no folders of these names.
        split_seed: makes the random choice of classes.
        examples: for prediction, a folder with a folder of images for each class: ``ways`` classes, as the network has
            so many outputs.
        new: for prediction, a folder of images to label.
        flips: mirror half of the training images, left to right.
        crops: shift training images by up to so many pixels to each side.
        rotations: by multiples of 90 degrees, see :data:`~lightning_maml.data.episodes.Rotations`.
        test_ways: classes of a validation or test task; None for ``ways``.
        test_shots: support images of each class in validation and test; None for ``shots``.
        test_queries: query images of each class in validation and test; None for ``queries``.

    Raises:
        ValueError: a number is out of range, or one of ``examples`` and ``new`` is missing; when the images are first
            needed, that a file is no image, a folder holds none, or classes or images are too few for such tasks.
        FileNotFoundError: a folder is not there; when its images are first needed.

    Example:
        >>> tasks = FolderTasks("animals", ways=5, shots=5, queries=10, size=84, flips=True, crops=8)
        >>> tasks.sizes["train"]
        {'ways': 5, 'shots': 5, 'queries': 10}
    """

    def __init__(
        self,
        root: str | Path,
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        size: int = 28,
        channels: Channels = "auto",
        split: tuple[float, float, float] = (0.7, 0.15, 0.15),
        split_seed: int = 0,
        examples: str | Path | None = None,
        new: str | Path | None = None,
        flips: bool = False,
        crops: int = 0,
        rotations: Rotations = "none",
        tasks_per_batch: int = 32,
        batches_per_epoch: int = 500,
        val_tasks: int = 200,
        test_tasks: int = 600,
        test_ways: int | None = None,
        test_shots: int | None = None,
        test_queries: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(tasks_per_batch, batches_per_epoch, val_tasks, test_tasks, seed)
        self.sizes = sizes_of_stages(ways=(ways, test_ways), shots=(shots, test_shots), queries=(queries, test_queries))
        check_whole(1, size=size)
        check_one_of(get_args(Channels), channels=channels)
        check_one_of(get_args(Rotations), rotations=rotations)
        check_split(split)
        check_seed(split_seed=split_seed)
        self.augmentation = Augmentation(flips, crops)
        for name, value, other in (("new", new, "examples"), ("examples", examples, "new")):
            if value is None and (new, examples) != (None, None):
                raise ValueError(f"Expected `{name}` beside `{other}` but got None: prediction needs both folders.")
        self.root, self.size, self.channels, self.rotations = Path(root).expanduser(), size, channels, rotations
        self.split, self.split_seed, self.where = tuple(split), split_seed, str(self.root)
        self.examples = None if examples is None else Path(examples).expanduser()
        self.new = None if new is None else Path(new).expanduser()

    def prepare_data(self) -> None:
        """Reads the images where they are not in the cache yet; Lightning calls it in one process only."""
        if self.examples is None:
            _ = self.data

    def setup(self, stage: str) -> None:
        """Loads the images, once in a process."""
        if stage == "predict" and self.examples is not None:
            _ = self._task
        else:
            super().setup(stage)

    @cached_property
    def data(self) -> Labelled:
        """All images, each class named by its folder."""
        stages, folders = _classes(self.root)
        files = [images_in(folder, below=True) for folder in folders]
        images = cached_images(self.root, [file for of_class in files for file in of_class], self.size)
        labels = torch.arange(len(files)).repeat_interleave(torch.tensor([*map(len, files)]))
        return Labelled(self._with_channels(images), labels, tuple(map(str, folders)), stages)

    @cached_property
    def class_names(self) -> list[str]:
        """The classes of ``examples``, in the order of the predictions' columns."""
        assert self.examples is not None
        names = [folder.name for folder in class_folders(self.examples)]
        if len(names) != (ways := self.sizes["train"]["ways"]):
            raise ValueError(
                f"Expected as many class folders in {self.examples} as the network has outputs, ways = {ways}, but got "
                f"{len(names)}: {', '.join(names)}. Train with `ways={len(names)}` to tell so many apart."
            )
        return names

    @cached_property
    def new_files(self) -> list[Path]:
        """The images to label, by name."""
        assert self.new is not None
        return images_in(self.new)

    @cached_property
    def _task(self) -> tuple[Tensor, Tensor, Tensor]:
        """The examples ``[1, Ns, C, H, W]``, their labels ``[1, Ns]``, and the new images ``[1, M, C, H, W]``."""
        assert self.examples is not None
        files = [images_in(self.examples / name, below=True) for name in self.class_names]
        labels = torch.arange(len(files)).repeat_interleave(torch.tensor([*map(len, files)]))
        # read together: grey ones among them are to have as many channels as those in colour
        images = read_images([*(file for of_class in files for file in of_class), *self.new_files], self.size)
        if self.channels == "auto":
            images = with_channels(images, self.data.images.shape[1])
        images = self._with_channels(images).float() / 255
        return images[None, : len(labels)], labels[None], images[None, len(labels) :]

    def _with_channels(self, images: Tensor) -> Tensor:
        return images if self.channels == "auto" else with_channels(images, self.channels)

    def predict_dataloader(self) -> Any:
        """Positions of the test tasks, or of the new images."""
        if self.examples is None:
            return super().predict_dataloader()
        number = len(self.new_files)
        return self._evaluation_steps("predict", number, math.ceil(number / math.ceil(number / AT_ONCE)))

    def _evaluation_batch(self, tasks: Evaluated, device: torch.device | str) -> TaskBatch:
        if tasks.stage != "predict" or self.examples is None:
            return super()._evaluation_batch(tasks, device)
        support_inputs, support_targets, new = self._task
        query_inputs = new[:, tasks.first : tasks.last]
        unknown = torch.zeros(query_inputs.shape[:2], dtype=torch.int64)
        return TaskBatch(support_inputs, support_targets, query_inputs, unknown).to(device)

    def predictions(self, outputs: Sequence[Tensor]) -> Any:
        """A row for each new image: its ``file``, the ``prediction``, and the probability of each class.

        From what ``Trainer.predict`` returned in this process, to a ``pandas.DataFrame``; None where there are no
        ``examples``, so that the test tasks were predicted.
        """
        import pandas as pd

        if self.examples is None:
            return None
        files = [file.name for part in self.predict_dataloader() for file in self.new_files[part.first : part.last]]
        scores = torch.cat([*outputs], 1)[0].float()
        return pd.DataFrame({"file": files, **class_columns(self.class_names, scores)})


def _classes(root: Path) -> tuple[tuple[Stage, ...] | None, list[Path]]:
    """The folders of classes, and the stage of each where the layout says it."""
    folders = class_folders(root)
    if not {"train"} <= {folder.name for folder in folders} <= {"train", "val", "test"}:
        return None, folders
    found: list[tuple[Stage, Path]] = []
    for stage in ("train", "val", "test"):
        if (root / stage).is_dir():
            found += [(stage, folder) for folder in class_folders(root / stage)]
    return tuple(stage for stage, _ in found), [folder for _, folder in found]
