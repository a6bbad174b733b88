"""The playground, built once for all processes of a run, and opened in Debian's Chromium."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from browser import CHROMIUM
from visits import REPOSITORY, Visit

TOOLS = {"clang-19": "clang-19 lld-19 wasi-libc libclang-rt-19-dev-wasm32", "npm": "nodejs npm", "make": "make"}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The folder that ``make playground`` writes."""
    for tool, packages in TOOLS.items():
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} (Debian: apt-get install {packages})")
    shared = tmp_path_factory.getbasetemp() if worker_id == "master" else tmp_path_factory.getbasetemp().parent
    with FileLock(shared / "playground.lock"):
        if not (shared / "playground.done").exists():
            # with the Python that runs the tests, which has all that `.ready` stands for
            call = ["make", "playground", f"BIN={Path(sys.executable).parent}", "READY="]
            done = subprocess.run(call, cwd=REPOSITORY, capture_output=True, text=True, check=False)
            if "npm error network" in done.stderr:
                pytest.skip("npm reaches no registry, and its packages are not there")
            assert done.returncode == 0, done.stdout + done.stderr
            (shared / "playground.done").touch()
    return REPOSITORY / "playground" / "dist"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A browser, Debian's own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(built: Path, chromium: Any) -> Any:
    """A tab whose ``playground.numerics`` a test calls."""
    tab = chromium.new_page()
    tab.goto((built / "playground.html").as_uri() + "#sine?updates=100")
    tab.wait_for_function("globalThis.playground")
    return tab


@pytest.fixture
def visit(built: Path, chromium: Any) -> Iterator[Visit]:
    """A tab in which nothing may go wrong: no error or warning, no request to a host, nothing wider than the window."""
    context = chromium.new_context(
        viewport={"width": 1200, "height": 900}, permissions=["clipboard-read", "clipboard-write"]
    )
    tab, wrong = context.new_page(), []
    tab.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    local = ("file:", "data:", "blob:", "about:")
    tab.on("request", lambda request: None if request.url.startswith(local) else wrong.append(request.url))
    yield Visit(tab, (built / "playground.html").as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()
    assert not wrong
