"""Writes the page of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_maml.report.about import about, heading, notes
from lightning_maml.report.curves import curves, speed
from lightning_maml.report.functions import functions
from lightning_maml.report.images import images
from lightning_maml.report.page import Section, page
from lightning_maml.report.rates import rates
from lightning_maml.report.run import read_run
from lightning_maml.report.steps import steps
from lightning_maml.report.tasks import Tried, try_tasks
from lightning_maml.report.trajectories import trajectories
from lightning_maml.rl import MetaRLModule
from lightning_maml.saving import whole_file
from lightning_maml.saving.files import first_line
from lightning_maml.training.module import MetaModule

FILE = "report.html"


def write_report(
    run: str | Path,
    *,
    baseline: str | Path | None = None,
    module: MetaModule | MetaRLModule | None = None,
    stream: Any = None,
    made_by: Mapping[str, str] | None = None,
) -> Path:
    """Writes ``report.html`` into the folder of a run: one file, which asks no other for anything; returns its path.

    Args:
        run: the folder of a run, such as ``runs/sinusoid/version_0``, or a checkpoint in it. Its best checkpoint
            adapts to some test tasks; what cannot be shown, as the data are not there, is said in a sentence.
        baseline: the same of a run to compare with.
        module, stream: what was trained, on what data; None for what the best checkpoint and the configuration say.
        made_by: what the page says of the code and machine that wrote it.

    Raises:
        FileNotFoundError: there is no such run.
        ValueError: a file of it is damaged.
    """
    own, other = read_run(run), None if baseline is None else read_run(baseline)
    said = [*notes(own)]
    tried: Tried | None = None
    shown: list[Section | None] = []
    try:
        if own.learns_policy or isinstance(module, MetaRLModule):
            shown = [trajectories(own, module if isinstance(module, MetaRLModule) else None, stream)]
        else:
            tried = try_tasks(own, module, stream)
            shown = [functions(tried), images(tried), rates(tried.module.rates)]
    except Exception as error:  # whatever the run's own network, loss or data raise: the rest of the page stands
        said.append(f"No test task is shown by itself: {first_line(error)}")
    found = [steps(own, other, tried), *shown, *curves(own, other), speed(own)]
    sections = [*filter(None, found), about(own, made_by or {})]
    title, lead = heading(own)
    path = own.folder / FILE
    with whole_file(path) as file:
        file.write(page(title, lead, said, sections).encode())
    return path
