"""A folder belongs to one run at a time."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from lightning_utilities.core.rank_zero import rank_zero_info

# Seconds from one sign of life to the next, and after how many without one a process of another host is gone.
BEAT, SILENCE = 15.0, 60.0
ELSEWHERE = "train elsewhere: --checkpoint.dirpath FOLDER (BestCheckpoint(dirpath=...))"


class FolderInUseError(ValueError):
    """Another run has the folder, or left its checkpoints there."""


@dataclass(frozen=True)
class Owner:
    """A process on a host."""

    host: str
    pid: int
    started: str  # when, as the system counts, since numbers come back in other processes; empty where nobody tells

    @classmethod
    def this(cls) -> Self:
        return cls(socket.gethostname().replace("/", "_"), os.getpid(), _state(os.getpid())[1])

    @classmethod
    def named(cls, name: str) -> Self | None:
        """The owner of a :attr:`name`, or None: it is none."""
        host, _, rest = name.rpartition("+")
        pid, _, started = rest.partition("-")
        return cls(host, int(pid), started) if pid.isdecimal() else None

    @property
    def name(self) -> str:
        """As part of a file's name."""
        return f"{self.host}+{self.pid}-{self.started}"

    def is_gone(self) -> bool:
        """Whether it is of this host, and has ended."""
        alive, started = _state(self.pid)
        return self.host == self.this().host and (not alive or bool(self.started and started not in ("", self.started)))


def _state(pid: int) -> tuple[bool, str]:
    """Whether a process of this host runs, and when it began."""
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return False, ""
        return fields[0] not in "ZX", fields[19]  # a killed one stays until its parent has looked
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError), ""
    return True, ""


class FolderLock:
    """Holds ``folder``, which may not exist yet, for the time of a run, by a file ``.lock`` with host and process.

    It is taken over from a process that is gone: of this host, at once; of another one, where the file has had no sign
    of life for a minute. The processes of a distributed run hold one lock, the first one's.

    Example:
        >>> import tempfile
        >>> lock = FolderLock(Path(tempfile.mkdtemp()))
        >>> lock.acquire()
        >>> lock.is_held()
        True
        >>> lock.release()
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.own = folder / ".lock", Owner.this()
        self._ended = threading.Event()

    def acquire(self) -> None:
        """Takes the folder, or raises FolderInUseError where another run has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        begun, first = time.monotonic(), None
        while True:
            with _alone(self.path.parent):
                owner = self._owner()
                beat = None if owner is None else self.path.stat().st_mtime_ns
                silent = beat == first and time.monotonic() - begun > SILENCE  # by this host's clock alone
                if owner is None or owner == self.own or owner.is_gone() or silent:
                    self.path.write_text(json.dumps(asdict(self.own)))
                    break
            folder, who = self.path.parent, f"process {owner.pid} on {owner.host}"
            if owner.host == self.own.host or first not in (None, beat):
                where = f"{folder} to be free but {who} is training there"
                raise FolderInUseError(f"Expected {where}. Wait for it, or {ELSEWHERE}.")
            if first is None:
                waiting = f"waiting up to {SILENCE:.0f} seconds for a sign of life"
                rank_zero_info(f"{folder} was last held by {who}: {waiting}.")
            first = beat
            time.sleep(BEAT / 10)
        threading.Thread(target=self._beat, daemon=True).start()

    def _owner(self) -> Owner | None:
        try:
            return Owner(**json.loads(self.path.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def _beat(self) -> None:
        while not self._ended.wait(BEAT) and self.is_held():
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def is_held(self) -> bool:
        """Whether the folder is still this process's."""
        return self._owner() == self.own

    def release(self) -> None:
        """Gives the folder back; nothing where it is not held."""
        self._ended.set()
        with contextlib.suppress(OSError), _alone(self.path.parent):
            if self.is_held():
                self.path.unlink()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No two processes in here at once for one folder, where the system can tell."""
    try:
        import fcntl
    except ImportError:  # there is none on Windows
        yield
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have none
            fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)
