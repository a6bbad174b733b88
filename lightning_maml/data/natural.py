"""What the streams of natural images share: their options, and the splits by class that their papers published."""

from pathlib import Path
from typing import ClassVar

from lightning_maml.data.augmentation import Augmentation
from lightning_maml.data.class_tasks import ClassTasks
from lightning_maml.data.stream import sizes_of_stages


class NaturalTasks(ClassTasks):
    """Few-shot classification of photographs; inputs ``[T, N, 3, H, W]`` in [0, 1], and not standardised.

    The classes of training, validation and test are those of the paper. A subclass reads the images, see
    :attr:`~lightning_maml.data.class_tasks.ClassTasks.data`.

    Arguments that are not described here are those of :class:`~lightning_maml.data.TaskStream`.

    Args:
        root: the folder that holds the images.
        ways: ``N``, classes of a task.
        shots: support images of each class.
        queries: query images of each class.
        flips: mirror half of the training images, left to right.
        crops: shift training images by up to so many pixels to each side.
        jitter: change brightness, contrast and saturation of each training image, by factors from ``1 - jitter`` to
            ``1 + jitter``.
        test_ways: classes of a validation or test task; None for ``ways``.
        test_shots: support images of each class in validation and test; None for ``shots``.
        test_queries: query images of each class in validation and test; None for ``queries``.
        download: fetch the images into ``root`` where they are not there, of data that have an official archive.

    Raises:
        ValueError: a number is out of range, or there is nothing to ``download`` from; when the images are first
            needed, that a file is damaged, or that classes or images are too few for such tasks.
        FileNotFoundError: a file is not there; when the images are first needed.
    """

    has_archive: ClassVar[bool] = False

    def __init__(
        self,
        root: str | Path,
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        flips: bool = True,
        crops: int = 0,
        jitter: float = 0.0,
        tasks_per_batch: int = 4,
        batches_per_epoch: int = 500,
        val_tasks: int = 200,
        test_tasks: int = 600,
        test_ways: int | None = None,
        test_shots: int | None = None,
        test_queries: int | None = None,
        seed: int = 0,
        download: bool = False,
    ) -> None:
        if download and not self.has_archive:
            raise ValueError(f"Expected `download` to be False, as {type(self).__name__} has no official archive.")
        super().__init__(tasks_per_batch, batches_per_epoch, val_tasks, test_tasks, seed)
        self.sizes = sizes_of_stages(ways=(ways, test_ways), shots=(shots, test_shots), queries=(queries, test_queries))
        self.augmentation = Augmentation(flips, crops, jitter)
        self.root, self.download = Path(root).expanduser(), download
        self.where = str(self.root)

    def prepare_data(self) -> None:
        """Reads the images where they are not in the cache yet; Lightning calls it in one process only."""
        _ = self.data
