"""Adapted weights in a file of safetensors: numbers and names, which no reader can be made to run."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_maml.adaptation import Adapted
from lightning_maml.checkpoints import whole_file
from lightning_maml.engine import Engine, Problem, named_engine
from lightning_maml.learner import Algorithm
from lightning_maml.losses import Loss, task_loss

FORMAT = "lightning-maml adapted weights 1"


def save_adapted(adapted: Adapted, path: str | Path) -> None:
    """Writes the adapted networks of a batch of tasks, whole or not at all.

    Each task's parameters are in ``adapted/<name>``, ``[T, *shape]``; what the tasks share, other parameters and
    buffers, in ``shared/<name>``, once. Any reader of safetensors reads it. A single task's network as an ordinary
    ``state_dict`` is ``safetensors.torch.save_model(adapted.network(t), path)``.

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

    tensors = {f"adapted/{name}": value for name, value in adapted.parameters.items()}
    tensors |= {f"shared/{name}": value for name, value in _shared(adapted.problem, adapted.parameters).items()}
    tensors["support_losses"] = adapted.support_losses
    plain = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    about = {"format": FORMAT, "algorithm": adapted.problem.algorithm.name}
    with whole_file(Path(path)) as file:
        file.write(save(plain, about))


def load_adapted(
    path: str | Path, network: nn.Module, algorithm: Algorithm, *, loss: Loss, engine: str | Engine = "auto"
) -> Adapted:
    """The adapted networks that :func:`save_adapted` wrote, on a copy of ``network``, which stays as it is.

    Args:
        path: the file.
        network: of the architecture that adapted; its values do not matter, its device and precision do.
        algorithm, loss, engine: as in :func:`~lightning_maml.adapt`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, is another one, or holds the weights of another network.
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
    if about.get("format") != FORMAT:
        raise ValueError(
            f"Expected a file that save_adapted wrote but {path} is another one, with {sorted(tensors)[:3]}."
        )
    problem = Problem(copy.deepcopy(network), algorithm, task_loss(loss))
    parameters = _of_network(tensors, "adapted/", problem.parameters, path, skip=1)
    shared = _shared(problem, parameters)
    found = _of_network(tensors, "shared/", shared, path)
    if absent := shared.keys() - found.keys():
        raise ValueError(f"Expected the weights of this network but {path} lacks {sorted(absent)[:3]}.")
    with torch.no_grad():
        for name, value in shared.items():
            value.copy_(found[name])
    losses = tensors["support_losses"].to(next(problem.network.parameters()).device)
    return Adapted(parameters, losses, problem, named_engine(engine) or "auto")


def _shared(problem: Problem, adapted: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the tasks share: the parameters that did not adapt, and the buffers."""
    everything = {**problem.parameters, **dict(problem.network.named_buffers())}
    return {name: value for name, value in everything.items() if name not in adapted}


def _of_network(
    tensors: dict[str, Tensor], prefix: str, own: dict[str, Tensor], path: str | Path, skip: int = 0
) -> dict[str, Tensor]:
    """The tensors of a prefix, as the network has them; ``skip`` leading dimensions are those of the tasks."""
    found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    for name, value in found.items():
        if name not in own or value.shape[skip:] != own[name].shape:
            wanted = f"{list(own[name].shape)}" if name in own else "none"
            raise ValueError(
                f"Expected the weights of this network but {path} holds {name} of shape {list(value.shape[skip:])} "
                f"where the network has {wanted}."
            )
    return {name: value.to(own[name]) for name, value in found.items()}
