"""Adapted weights in a file of safetensors: numbers and names, which no reader can be made to run."""

import copy
import hashlib
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_maml.adaptation import Adapted
from lightning_maml.engine import Engine, Problem, named_engine
from lightning_maml.learner import Algorithm
from lightning_maml.losses import Loss, task_loss
from lightning_maml.saving.files import whole_file
from lightning_maml.saving.states import check_fits

FORMAT = "lightning-maml adapted weights 2"
UNCHECKED = "lightning-maml adapted weights 1"  # written before there was a checksum


def save_adapted(adapted: Adapted, path: str | Path) -> None:
    """Writes the adapted networks of a batch of tasks, whole or not at all.

    Each task's parameters are in ``adapted/<name>``, ``[T, *shape]``; what the tasks share, other parameters and
    buffers, in ``shared/<name>``, once. Any reader of safetensors reads it.

    Example:
        >>> import tempfile
        >>> from lightning_maml import adapt, maml
        >>> x, network = torch.randn(4, 10, 1), nn.Linear(1, 1)
        >>> adapted = adapt(network, maml(lr=0.1, steps=2), x, 2 * x, loss="mse")
        >>> path = Path(tempfile.mkdtemp()) / "adapted.safetensors"
        >>> save_adapted(adapted, path)
        >>> again = load_adapted(path, network, maml(lr=0.1, steps=2), loss="mse")
        >>> torch.equal(again.predict(x), adapted.predict(x))
        True
    """
    from safetensors.torch import save  # when first needed: a training needs none of it

    own = adapted.parameters
    tensors = {f"adapted/{name}": value for name, value in own.items()} | {"support_losses": adapted.support_losses}
    tensors |= {f"shared/{name}": value for name, value in _tensors(adapted.problem).items() if name not in own}
    plain = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    about = {"format": FORMAT, "algorithm": adapted.problem.algorithm.name}
    with whole_file(Path(path)) as file:
        file.write(save(plain, about | {"sha256": sha256_of(about, plain)}))


def load_adapted(
    path: str | Path, network: nn.Module, algorithm: Algorithm, *, loss: Loss, engine: str | Engine = "auto"
) -> Adapted:
    """The adapted networks that :func:`save_adapted` wrote, on a copy of ``network``, which stays as it is.

    Args:
        path, algorithm, loss, engine: the file; and as in :func:`~lightning_maml.adapt`.
        network: of the architecture that adapted; its values do not matter, its device and precision do.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, is another one, or holds the weights of another network; or it holds statistics
            of support sets where ``algorithm`` does not go by them, or the other way round.

    It warns where the file has no checksum, so that damage to its numbers would not be seen.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"Expected adapted weights at {path} but there is no such file.")
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
    except (SafetensorError, OSError) as error:
        raise ValueError(f"Expected a whole file of safetensors but {path} is damaged or none ({error}).") from error
    if about.get("format") not in (FORMAT, UNCHECKED):
        names = sorted(tensors)[:3]
        raise ValueError(f"Expected a file that save_adapted wrote but {path} is another one, with {names}.")
    checksum = about.pop("sha256", None)
    if checksum is None and about["format"] == UNCHECKED:
        said = "was written without a checksum: damage to its numbers cannot be seen. Save it anew."
        warnings.warn(f"{path} {said}", stacklevel=2)
    elif checksum != sha256_of(about, tensors):
        raise ValueError(f"Expected a whole file of safetensors but {path} is damaged: its checksum is wrong.")
    problem = Problem(copy.deepcopy(network), algorithm, task_loss(loss))
    own = _tensors(problem)
    adapted, shared = (
        {name.removeprefix(kind): value for name, value in tensors.items() if name.startswith(kind)}
        for kind in ("adapted/", "shared/")
    )
    of_one_task = {name: value.new_empty(value.shape[1:], device="meta") for name, value in adapted.items()}
    check_fits(shared | of_one_task, own, path)
    parameters = {name: value.to(own[name]) for name, value in adapted.items()}
    with torch.no_grad():
        for name, value in shared.items():
            own[name].copy_(value)
    holds = not parameters.keys() <= problem.parameters.keys()
    if bool(problem.norms) and holds != (algorithm.batch_norm == "support"):
        raise ValueError(
            f"Expected the weights of an algorithm with batch_norm={algorithm.batch_norm!r} but {path} holds "
            f"{'the' if holds else 'no'} statistics of the tasks' support sets: load it by the algorithm that adapted."
        )
    losses = tensors["support_losses"].to(next(problem.network.parameters()).device)
    return Adapted(parameters, losses, problem, named_engine(engine) or "auto")


def sha256_of(about: dict[str, str], tensors: dict[str, Tensor]) -> str:
    """SHA-256 of all that a file says: names, types, shapes and numbers, in the order of the names."""
    digest = hashlib.sha256(repr(sorted(about.items())).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tensors(problem: Problem) -> dict[str, Tensor]:
    return {**problem.parameters, **dict(problem.network.named_buffers())}
