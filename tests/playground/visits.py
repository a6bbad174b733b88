"""A tab with the playground in it, and what a person does there."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]


@dataclass
class Visit:
    """One tab of the one-file playground, opened from its folder, with all that went wrong in it."""

    tab: Any
    address: str

    def go(self, hash: str) -> None:
        """Opens a page by what stands behind the # of its address, and waits until it is drawn."""
        self.tab.goto("about:blank")
        self.tab.goto(f"{self.address}#{hash}")
        self.drawn()

    def drawn(self) -> None:
        self.tab.wait_for_selector("html[data-page]")
        for _ in range(200):
            if self.tab.evaluate("Object.keys(playground.numbers() ?? {}).length > 0"):
                return
            self.tab.wait_for_timeout(50)
        raise AssertionError("the page shows no numbers within ten seconds")

    @property
    def hash(self) -> str:
        """What stands behind the # of the address, once it is written: sixteen times a second at most."""
        self.tab.wait_for_timeout(150)
        return self.tab.evaluate("location.hash.slice(1)")

    def numbers(self) -> dict[str, float]:
        """The numbers that the page shows."""
        return self.tab.evaluate("playground.numbers()")

    def state(self) -> dict[str, Any]:
        return self.tab.evaluate("playground.state()")

    def complains_of(self, wrong: str) -> None:
        """Asserts that what is wrong in the address, ``name=value``, is told."""
        notice = self.tab.locator(".notice").inner_text()
        assert notice.startswith("Expected")
        assert wrong.partition("=")[0] in notice

    def slide(self, name: str, value: float) -> None:
        """Moves the slider of a property, as a hand does."""
        self.tab.locator(f"#control-{name}").fill(str(value))

    def program(self) -> dict[str, float]:
        """What the program of "Copy as Python" prints."""
        self.tab.get_by_role("button", name="Copy as Python").click()
        text = self.tab.evaluate("navigator.clipboard.readText()")
        call = [sys.executable, "-W", "error::DeprecationWarning", "-c", text]
        done = subprocess.run(call, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stderr}"
        return json.loads(done.stdout)
