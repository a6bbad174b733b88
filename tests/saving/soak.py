"""What the soak test adds to a run of the command line: time, so that a signal finds it anywhere, and limits."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

from lightning_maml.cli.command_line import main


class Pace(Callback):
    """Leaves a file once training has begun, and waits a little after each training step."""

    def on_train_batch_end(self, *_: Any) -> None:
        Path(f"started_{os.getpid()}").touch()
        time.sleep(0.05)


if __name__ == "__main__":
    if "DISK" in os.environ:  # the longest file that this process may write
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["DISK"]),) * 2)
    sys.exit(main(sys.argv[1:]))
