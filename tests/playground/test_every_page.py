"""What holds for every page: narrow and wide, light and dark, without a word in the console, and small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

PAGES = ("sine", "landscape", "directions", "curvature", "family", "navigation")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1600])
def test_pages_open_at_every_width(built: Path, chromium: Any, width: int, scheme: str) -> None:
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab, wrong, papers = context.new_page(), [], set()
    tab.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.goto((built / "playground.html").as_uri() + "#sine?updates=100")
    tab.wait_for_selector("html[data-page=sine]")
    assert tab.locator("nav a").evaluate_all("all => all.map((one) => one.hash.slice(1))") == [*PAGES]
    for page in PAGES:
        tab.locator(f"nav a[href='#{page}']").click()
        tab.wait_for_selector(f"html[data-page={page}]")
        tab.wait_for_timeout(300)
        assert tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, page
        assert tab.locator(".chart svg").count() > 0
        assert tab.locator(".about").inner_text().count(".") >= 2
        papers.add(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
    context.close()
    assert wrong == []
    assert papers == {"rgb(252, 252, 251)" if scheme == "light" else "rgb(20, 23, 26)"}


def test_it_weighs_little_and_asks_nobody(built: Path) -> None:
    text = (built / "playground.html").read_text()
    assert len(text.encode()) < 1_000_000
    assert "connect-src 'none'" in text
    assert 'src="' not in text.replace('src="data:', "")
    assert {path.suffix for path in (built / "assets").iterdir()} == {".css", ".js"}
