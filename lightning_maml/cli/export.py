"""``lightning-maml export CKPT --task FILE --to onnx``: an adapted network for other programs."""

import argparse
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from lightning_maml import saving, trained
from lightning_maml.adaptation import adapt
from lightning_maml.data import TableTasks
from lightning_maml.data.columns import Columns
from lightning_maml.data.one_task import OneTask, read_task
from lightning_maml.learner import Algorithm
from lightning_maml.losses import task_loss
from lightning_maml.saving.export import ABOUT, INPUTS, PREDICTIONS, SUFFIXES, Format, export
from lightning_maml.saving.weights import sha256_of
from lightning_maml.training.module import MetaModule

HOW_TO_LOAD = {
    "torch": "torch.export.load({path!r}).module()({inputs})",
    "onnx": "onnxruntime.InferenceSession({path!r}).run(['" + PREDICTIONS + "'], {{'" + INPUTS + "': {inputs}}})[0]",
    "safetensors": "network.load_state_dict(safetensors.torch.load_file({path!r}))",
}


def main(args: Sequence[str] | None = None, allowed: Sequence[str] = ()) -> Path:
    """Adapts to the examples, writes the network, says what it takes, and returns where it is."""
    parser = argparse.ArgumentParser(
        "lightning-maml export",
        description="Adapt to the examples of a task, and write the network for other programs.",
    )
    given = "a checkpoint, or the name of weights that ship with the package: " + ", ".join(trained.names())
    parser.add_argument("checkpoint", metavar="CKPT", help=given)
    files = "its examples: a table, .csv or .parquet, of this task alone, or a folder of images for each class"
    parser.add_argument("--task", metavar="FILE", required=True, type=Path, help=files)
    parser.add_argument(
        "--to", choices=get_args(Format), required=True, help="torch.export program, ONNX, or weights alone"
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="by default the task's name, here")
    parser.add_argument("--batch-norm", choices=("batch", "support", "running"), help="instead of the algorithm's own")
    parser.add_argument("--steps", type=int, help="inner steps; by default as many as in the module's tests")
    parser.add_argument("--inputs", nargs="+", default=[], metavar="NAME", help="columns, where training had no table")
    parser.add_argument("--targets", nargs="+", default=[], metavar="NAME", help="by default the last column")
    parser.add_argument("--size", type=int, help="of images; by default the network's own")
    parser.add_argument("--channels", type=int, choices=(1, 3), help="of images; by default the network's own")
    options = parser.parse_args(args)
    path = trained.path_of(options.checkpoint) if options.checkpoint in trained.names() else Path(options.checkpoint)
    content = saving.read_checkpoint(path)
    hyper = content.get("hyper_parameters") or {}
    if "policy" in hyper:
        raise ValueError(f"Expected a checkpoint of a network to adapt to examples but {path} is one of a policy.")
    module = MetaModule.load_from_checkpoint(path, allow=allowed).eval()
    task = _read(options, content, hyper, module)
    algorithm: Algorithm = module.algorithm.with_steps(module.test_steps if options.steps is None else options.steps)
    if options.batch_norm:
        algorithm = replace(algorithm, batch_norm=options.batch_norm)
    adapted = adapt(
        module.network, algorithm, task.inputs[None], task.targets[None], loss=module.loss, safeguard=module.safeguard
    )
    about = {
        **task.about, "lightning_maml": version("lightning-maml"), "weights": sha256_of({}, content["state_dict"]),
        "inner_steps": algorithm.inner.steps, "examples": len(task.inputs),
    }  # fmt: skip
    out = options.out or Path(f"{options.task.stem}{SUFFIXES[options.to]}")
    export(adapted.network(0), task.inputs, out, options.to, about)
    before, after = adapted.support_losses[0, [0, -1]].tolist()
    print(
        f"Adapted to {len(task.inputs)} examples in {algorithm.inner.steps} steps: loss {before:.4g}, then {after:.4g}"
    )
    print(f"Inputs: {_inputs(task)}")
    print(f"Predictions: {_predictions(task)}")
    print(f"Written to {out}, {out.stat().st_size:,} bytes, with this as JSON under {ABOUT!r}. To load it:")
    print(f"  {HOW_TO_LOAD[options.to].format(path=str(out), inputs='inputs')}")
    return out


def _read(options: Any, content: Mapping[str, Any], hyper: Mapping[str, Any], module: MetaModule) -> OneTask:
    state = content.get(TableTasks.__qualname__)
    of_network = {name: found.default for name, found in inspect.signature(type(module.network)).parameters.items()}
    of_network |= (hyper.get("network") or {}).get("init_args") or {}
    sizes = {
        "size": options.size or of_network.get("image_size"),
        "channels": options.channels or of_network.get("channels"),
    }
    if "image_size" in of_network and options.task.is_file():
        raise ValueError(f"Expected a folder with a folder of images for each class but {options.task} is a file.")
    return read_task(
        options.task,
        columns=Columns(**state) if isinstance(state, dict) else None,
        inputs=options.inputs,
        targets=options.targets,
        labels=task_loss(module.loss).kind == "cross_entropy",
        **sizes,
    )


def _inputs(task: OneTask) -> str:
    shape = f"[rows, {', '.join(map(str, task.inputs.shape[1:]))}]"
    if "images" in task.about:
        return f"{shape}, float32 from 0 to 1"
    columns = task.about["columns"]
    parts = []
    for name in columns["input_names"]:
        if name in columns["categories"]:
            parts += [f"{name} is {category}" for category in columns["categories"][name]]
        else:
            parts.append(_scaled(name, *columns["input_scales"][name]))
    return f"{shape}, float32: {', '.join(parts)}"


def _predictions(task: OneTask) -> str:
    if task.about["classification"]:
        return f"[rows, {len(task.about['outputs'])}], of each class a score: {', '.join(task.about['outputs'])}"
    scales = task.about["columns"]["target_scales"]
    names = [_scaled(name, *scale) for name, scale in zip(task.about["outputs"], scales, strict=True)]
    return f"[rows, {len(names)}]: {', '.join(names)}"


def _scaled(name: str, mean: float, deviation: float) -> str:
    sign = "+" if mean < 0 else "-"
    return name if (mean, deviation) == (0.0, 1.0) else f"({name} {sign} {abs(mean):.6g}) / {deviation:.6g}"
