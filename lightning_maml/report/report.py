"""Writes the page of a run."""

from collections.abc import Mapping
from pathlib import Path

from lightning_maml.report.about import about, heading, notes
from lightning_maml.report.curves import curves, speed
from lightning_maml.report.functions import functions
from lightning_maml.report.images import images
from lightning_maml.report.page import page
from lightning_maml.report.rates import rates
from lightning_maml.report.run import read_run
from lightning_maml.report.steps import steps
from lightning_maml.report.tasks import Tried, try_tasks
from lightning_maml.saving import whole_file
from lightning_maml.saving.files import first_line

FILE = "report.html"


def write_report(
    run: str | Path, *, baseline: str | Path | None = None, made_by: Mapping[str, str] | None = None
) -> Path:
    """Writes ``report.html`` into the folder of a run: one file, which asks no other for anything; returns its path.

    Args:
        run: the folder of a run, such as ``runs/sinusoid/version_0``, or a checkpoint in it. Its best checkpoint
            adapts to some test tasks; what cannot be shown, as the data are not there, is said in a sentence.
        baseline: the same of a run to compare with.
        made_by: what the page says of the code and machine that wrote it.

    Raises:
        FileNotFoundError: there is no such run.
        ValueError: a file of it is damaged.
    """
    own, other = read_run(run), None if baseline is None else read_run(baseline)
    said = [*notes(own)]
    tried: Tried | None = None
    try:
        tried = try_tasks(own)
    except Exception as error:  # whatever the run's own network, loss or data raise: the rest of the page stands
        said.append(f"No test task is shown by itself: {first_line(error)}")
    found = [steps(own, other, tried)]
    if tried is not None:
        found += [functions(tried), images(tried), rates(tried.module.rates)]
    sections = [*filter(None, [*found, *curves(own, other), speed(own)]), about(own, made_by or {})]
    title, lead = heading(own)
    path = own.folder / FILE
    with whole_file(path) as file:
        file.write(page(title, lead, said, sections).encode())
    return path
