"""A trained module as a repository of the Hugging Face Hub has it: by the hub's own mixin, with a card."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData, ModelHubMixin

from lightning_maml.saving.pretrained import write_module


class HubModule(ModelHubMixin):
    """What the mixin saves and uploads of a ``module``: weights, configuration, and a card of what was measured."""

    def __init__(self, module: Any, parameters: Mapping[str, Any], measured: Mapping[str, Any] | None) -> None:
        data = ((module.configuration or {}).get("data") or {}).get("class_path")  # where the command line trained
        known = {"data": data.rpartition(".")[2]} if isinstance(data, str) and measured is not None else {}
        self.module, self.parameters = module, parameters
        self.measured = None if measured is None else {**known, **measured}
        self._hub_mixin_config = None  # which the mixin would write over ours

    def _save_pretrained(self, save_directory: Path) -> None:
        write_module(self.module, self.parameters, self.measured, save_directory)
        (save_directory / "README.md").unlink(missing_ok=True)  # of other weights: the mixin would leave it

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        return card_of(type(self.module).__name__, self.module.algorithm.name, self.measured)


def card_of(module: str, algorithm: str, measured: Mapping[str, Any] | None) -> ModelCard:
    """The card, with the hub's block of metadata: every number in it is one of ``measured``.

    Args:
        module, algorithm: the class, and the name of the algorithm.
        measured: ``reproduction.json`` or ``metrics.json``, or None, which the card says.
    """
    name = str((measured or {}).get("protocol", f"{algorithm}, a {module}"))
    rows = [*_rows(measured or {})]
    data = ModelCardData(
        library_name="lightning-maml",
        tags=["meta-learning", "few-shot", algorithm],
        model_name=name if rows else None,
        eval_results=[*_for_the_hub(measured or {}, rows)] or None,
    )
    lines = [f"---\n{data.to_yaml()}\n---\n", f"# {name}\n"]
    lines.append(f"A `{module}` of lightning-maml, trained by `{algorithm}`.\n")
    lines.append('```python\nfrom lightning_maml import from_pretrained\n\nmodule = from_pretrained("FOLDER")\n```\n')
    lines.append("## What was measured\n")
    if rows:
        lines += ["| value | inner steps | measured, 95 % interval | published |", "|---|---|---|---|"]
        cells = (
            [row.value, str(row.inner_steps), _number(*row[:1], *row[2:4]), _number(*row[:1], *row[4:])] for row in rows
        )
        lines += [f"| {' | '.join(row)} |" for row in cells]
    else:
        lines.append("Nothing that this card knows of: no test was given when it was saved.")
    facts = {key: value for key, value in (measured or {}).items() if _is_fact(value) and key not in ("protocol",)}
    lines += ["", *(f"- {key.replace('_', ' ')}: {_words(value)}" for key, value in facts.items())]
    return ModelCard("\n".join(lines) + "\n")


class _Row(NamedTuple):
    value: str
    inner_steps: int
    measured: float | None
    measured_ci95: float | None
    published: float | None = None
    published_ci95: float | None = None


def _rows(measured: Mapping[str, Any]) -> Iterator[_Row]:
    """One a value and number of inner steps, of a reproduction or of a test."""
    for row in measured.get("results", ()):
        yield _Row(*(row[name] for name in _Row._fields))
    for value in ("accuracy", "loss", "return") if "results" not in measured else ():
        found = measured.get(value, {"mean": [], "ci95": []})
        for step, (mean, ci95) in enumerate(zip(found["mean"], found["ci95"], strict=True)):
            yield _Row(value, step, mean, ci95)


def _for_the_hub(measured: Mapping[str, Any], rows: Sequence[_Row]) -> Iterator[EvalResult]:
    """The numbers in the form of the hub's metadata, which has finite ones alone."""
    data = str(measured.get("data", "unknown"))
    for row in rows:
        if row.measured is not None:
            yield EvalResult(
                task_type="few-shot-learning",
                dataset_type=data,
                dataset_name=data,
                dataset_split="test",
                metric_type=row.value,
                metric_name=f"{row.value} after {row.inner_steps} inner steps",
                metric_value=row.measured,
            )


def _number(value: str, mean: float | None, ci95: float | None) -> str:
    if mean is None:
        return "-"
    factor, digits, unit = (100, 2, " %") if value == "accuracy" else (1, 4, "")
    interval = "" if ci95 is None else f" ± {factor * ci95:.{digits}f}"
    return f"{factor * mean:.{digits}f}{interval}{unit}"


def _is_fact(value: Any) -> bool:
    plain = isinstance(value, str | int | float | bool)
    return plain or (isinstance(value, Mapping) and all(not isinstance(one, list | dict) for one in value.values()))


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
