"""Images: a task's support set, its queries, and what they are taken for after each inner step."""

import base64
import html
import io
import json

import torch
from torch import Tensor

from lightning_maml.report.page import Section, slider
from lightning_maml.report.tasks import Tried

TASKS, QUERIES = 3, 20
"""How many tasks are shown, and how many queries of each."""


def images(tried: Tried) -> Section | None:
    """Three tasks of classes of images; None where inputs are no images ``[T, N, C, H, W]`` or targets no labels."""
    tasks, predictions = tried.tasks, tried.evaluation.predictions
    inputs, labels = tasks.support_inputs, tasks.support_targets
    if inputs.ndim != 5 or inputs.shape[2] not in (1, 3) or labels.ndim != 2 or labels.is_floating_point():
        return None
    if predictions.ndim != 4:
        return None
    last = predictions.shape[1] - 1
    parts = [slider("images-step", "After inner step", last)]
    for task in range(min(TASKS, len(tasks))):
        support, queries = _uint8(tasks.support_inputs[task], tasks.query_inputs[task])
        order = labels[task].argsort(stable=True).tolist()
        chosen = _spread(tasks.query_targets[task])
        given = [(support[at], int(labels[task, at]), f"Support image of class {labels[task, at]}") for at in order]
        asked = [
            (
                queries[at],
                int(tasks.query_targets[task, at]),
                f"Query image {at}, of class {tasks.query_targets[task, at]}",
            )
            for at in chosen
        ]
        predicted = predictions[task, :, chosen].argmax(-1).tolist()
        count = f'<span id="count-{task}" aria-live="polite"></span>'
        parts.append(
            f'<h3>Task {task}: support set, by class</h3><div class="images">{_figures(given)}</div>'
            f"<h3>Task {task}: queries, and the class each is taken for: {count}</h3>"
            f'<div class="images" data-slider="images-step" data-count="count-{task}" '
            f'data-predicted="{html.escape(json.dumps(predicted))}">{_figures(asked)}</div>'
        )
    says = (
        "Each task has classes of its own, which the network has never seen; it adapts to the support images and says "
        "of which class a query is. A tick is right, a cross and a dashed edge is wrong; step 0 is before adapting."
    )
    return Section("Images: what is taken for what", says, "".join(parts))


def _spread(labels: Tensor) -> list[int]:
    """Queries, as many of each class as there is room for, by class."""
    classes = labels.unique().tolist()
    each = max(1, QUERIES // len(classes))
    return [at for label in classes for at in (labels == label).nonzero().flatten().tolist()[:each]]


def _uint8(*sets: Tensor) -> list[Tensor]:
    """Images as bytes ``[N, C, H, W]``: 0 to 1 as they are, else by the least and the largest of a channel."""
    every = torch.cat(sets).float()
    low, high = every.amin((0, 2, 3), keepdim=True), every.amax((0, 2, 3), keepdim=True)
    if low.min() >= 0 and high.max() <= 1:
        low, high = torch.zeros_like(low), torch.ones_like(high)
    return [((one.float() - low) / (high - low).clamp_min(1e-9) * 255).round().byte() for one in sets]


def _figures(shown: list[tuple[Tensor, int, str]]) -> str:
    return "".join(
        f'<figure data-label="{label}"><img alt="{alt}" src="{_png(pixels)}"><figcaption>{label}</figcaption></figure>'
        for pixels, label, alt in shown
    )


def _png(pixels: Tensor) -> str:
    """A data URL of an image ``[C, H, W]``."""
    from PIL import Image

    array = pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
