"""States that a checkpoint brings back: of the form that this run's own have, and naming no file of anybody else's."""

import os
import random
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_maml.engine.generators import accelerator, restore_rng, rng_state
from lightning_maml.saving.files import first_line, naming

LOOPS = ("loops.fit_loop", "loops.validate_loop", "loops.test_loop")
# What optimisers remember of each element of a parameter.
ELEMENTWISE = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg")
OF_A_RUN = "states of a run such as this one"


def check_fits(state: dict[str, Any], expected: dict[str, Any], path: Any) -> None:
    """Raise ValueError, naming the file, where a checkpoint's ``{name: tensor}`` are not those the module has."""
    got, own = ({name: getattr(value, "shape", None) for name, value in each.items()} for each in (state, expected))
    problems = []
    for what, names in (("lacks", own.keys() - got.keys()), ("has besides", got.keys() - own.keys())):
        if names:
            problems.append(f"{what} {', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''}")
    for name in [name for name in sorted(own.keys() & got.keys()) if got[name] != own[name]][:1]:
        problems.append(f"has {name} of shape {list(got[name] or ())} in the place of {list(own[name] or ())}")
    if problems:
        file = path or "the one given"
        raise ValueError(f"Expected a checkpoint of this network and algorithm but {file} {', and '.join(problems)}.")


def check_states(checkpoint: dict[str, Any], trainer: Trainer, path: Any) -> None:
    """Has callbacks and loops get from a checkpoint only what they may; changes ``checkpoint``.

    Lightning's ``ModelCheckpoint`` removes files that its state names: names of what lies outside of its folder, with
    all links followed, are dropped with a warning. ``best_model_path``, which is only read, may lie beside ``path``.
    ValueError where a state is of another form than this run's own, or the checkpoint has no states.
    """
    loops, states = checkpoint.get("loops") or {}, checkpoint.get("callbacks") or {}
    with naming(path, OF_A_RUN):
        for where in LOOPS:
            name = where.removeprefix("loops.")
            if name in loops:
                _check_same_form(loops[name], getattr(trainer, name).state_dict(), where)
        for stopping in trainer.early_stopping_callbacks:
            if states.get(stopping.state_key):
                _check_same_form(states[stopping.state_key], stopping.state_dict(), "callbacks.EarlyStopping")
        if trainer.training:
            parts = {name: checkpoint.get(name) for name in ("loops", "optimizer_states", "lr_schedulers")}
            for name, part in (parts | {"loops.fit_loop": loops.get("fit_loop")}).items():
                if part is None:
                    raise ValueError(f"it has no {name}, without which no training goes on")
            for state in checkpoint.get("random_states") or []:
                _check_random_state(state)
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.state_key in states:
            states[callback.state_key] = _own_files(dict(states[callback.state_key]), callback, path)


def check_optimization(checkpoint: dict[str, Any], optimizer: Any, scheduler: Any, path: Any) -> None:
    """Raise ValueError where the states of optimiser and scheduler are not of the form that these have."""
    with naming(path, OF_A_RUN):
        (state,) = checkpoint["optimizer_states"]
        if state.keys() != {"state", "param_groups"} or len(state["param_groups"]) != len(optimizer.param_groups):
            raise ValueError("its optimizer_states are those of another optimizer")
        own = optimizer.state_dict()["param_groups"]
        for group, known in zip(state["param_groups"], own, strict=True):
            if not isinstance(group, Mapping) or group.get("params") != known["params"]:
                raise ValueError("its optimizer_states are of other parameters")
            for name, value in group.items():
                if name in known:  # schedulers add entries, of numbers
                    _check_same_form(value, known[name], f"optimizer_states.{name}")
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if not isinstance(state["state"], Mapping) or not state["state"].keys() <= set(range(len(parameters))):
            raise ValueError("its optimizer_states are of other parameters")
        for index, values in state["state"].items():
            wanted = parameters[index].shape
            for name, value in values.items():
                if name in ELEMENTWISE and value.shape != wanted:
                    shapes = f"{list(value.shape)} for a parameter of {list(wanted)}"
                    raise ValueError(f"optimizer_states have {name} of shape {shapes}")
        if scheduler is None:
            return
        if len(states := checkpoint["lr_schedulers"]) != 1:
            raise ValueError(f"it has states of {len(states)} lr_schedulers, and here is one")
        own = scheduler.state_dict()
        for name, value in states[0].items():  # which become attributes; versions of torch differ in their names
            if name not in own and hasattr(type(scheduler), name):
                raise ValueError(f"lr_schedulers has {name!r:.60}, which is a method")
            _check_same_form(value, own.get(name), f"lr_schedulers.{name}")


def _check_same_form(state: Any, own: Any, where: str) -> None:
    """Raise ValueError where a state has other names or kinds than the own one: loading it sets attributes."""
    kind = type(state).__name__
    if isinstance(own, Mapping):
        if not isinstance(state, Mapping):
            raise ValueError(f"{where} is {kind}")
        if where.endswith("state_dict"):  # what a loop keeps besides, such as of its loaders
            return
        missing = own.keys() - state.keys()
        if missing and where not in LOOPS and any(not isinstance(value, Mapping) for value in own.values()):
            raise ValueError(f"{where} lacks {sorted(missing)}")
        for name, value in state.items():
            if name in own:
                _check_same_form(value, own[name], f"{where}.{name}")
            elif where not in LOOPS:  # there another version of Lightning may have more, and this one passes over it
                raise ValueError(f"{where} has {name!r:.60}, which is unknown")
    elif state is None:
        return
    elif isinstance(own, bool | int | float | Tensor) and not (isinstance(state, int | float) or _is_number(state)):
        raise ValueError(f"{where} is {kind} instead of a number")
    elif isinstance(own, str | list | tuple) and not isinstance(state, str | list | tuple):
        raise ValueError(f"{where} is {kind} instead of {type(own).__name__}")


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1


def _own_files(state: dict[str, Any], callback: ModelCheckpoint, path: Any) -> dict[str, Any]:
    """The state of a ModelCheckpoint without names of files that are not its own."""
    folder, beside = callback.dirpath, Path(path).parent if isinstance(path, str | os.PathLike) else None

    def own(file: Any, *folders: Any) -> bool:
        """Whether it is a checkpoint's name in one of the folders, wherever links lead."""
        if not isinstance(file, str) or "://" in file or ".." in Path(file).parts or "\0" in file:
            return False
        inside = any(Path(one).resolve() in Path(file).resolve().parents for one in folders if one)
        return inside and file.endswith(callback.FILE_EXTENSION) and not Path(file).is_dir()

    models = state.get("best_k_models")
    scores = models.items() if isinstance(models, Mapping) else ()
    kept = {file: score for file, score in scores if own(file, folder) and _is_number(score)}
    dropped = [file for file, _ in scores if file not in kept]
    for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
        if (value := state.get(name)) and not own(value, folder, beside if name == "best_model_path" else None):
            dropped.append(value)
            state[name] = ""
    state = {"best_model_path": "", "best_model_score": None, **state, "best_k_models": kept}
    if state.get("kth_best_model_path") not in kept:
        state["kth_best_model_path"] = next(iter(kept), "")
    # of another folder Lightning takes over nothing but the best one's path, and says so
    if dropped and folder is not None and state.get("dirpath", folder) == folder:
        warnings.warn(
            f"The checkpoint {path} names files as those of a ModelCheckpoint that do not lie in its folder {folder}; "
            f"they are left alone: {', '.join(sorted({repr(one)[:100] for one in dropped})[:3])}.",
            stacklevel=2,
        )
    return state


def random_state() -> dict[str, Any]:
    """The state of torch's, numpy's and Python's generators in this process, as plain data, which alone is read."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  # what other code draws from is what is saved
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *map(float, rest)],
        "python": random.getstate(),
    }
    if (device := accelerator()) is not None:
        state[device.type] = rng_state(device)
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Puts the generators back to where :func:`random_state` found them."""
    name, keys, position, has_gauss, gauss = state["numpy"]
    version, internal, gauss_next = state["python"]
    torch.set_rng_state(state["torch"].cpu())
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), int(position), int(has_gauss), gauss))  # noqa: NPY002
    random.setstate((version, tuple(internal), gauss_next))
    device = accelerator()
    if device is not None and device.type in state:
        restore_rng(device, state[device.type].cpu())


def _check_random_state(state: Any) -> None:
    """Raise ValueError where the generators do not take a state; they go on from where they are."""
    now = random_state()
    try:
        restore_random_state(state)
    except Exception as error:
        raise ValueError(f"its random_states are none ({first_line(error)[:120]})") from None
    finally:
        restore_random_state(now)
