"""The two commands of docs/own_data.md, from a folder of images to labels."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from drawings import write_classes

SHORT = [
    "--trainer.max_steps",
    "2",
    "--data.batches_per_epoch",
    "2",
    "--data.val_tasks",
    "2",
    "--trainer.accelerator",
    "cpu",
]


def test_images_become_labels_by_two_commands(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(repository / "configs")
    write_classes(tmp_path / "chars", 16, 10)
    write_classes(tmp_path / "examples", 5, 3, first=20)
    (write_classes(tmp_path / "more", 1, 4, first=21) / "class_21").rename(tmp_path / "new")
    text = (repository / "docs" / "own_data.md").read_text()
    commands = [
        shlex.split(line)
        for block in re.findall(r"^```bash\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
        if "folder.yaml" in line
    ]
    assert [words[1] for words in commands] == ["fit", "predict"]
    for _, *words in commands:
        done = subprocess.run(
            [sys.executable, "-m", "lightning_maml.cli", *words, *SHORT],
            cwd=tmp_path,
            env={**os.environ, "LIGHTNING_MAML_CACHE": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert "predictions" in done.stdout
