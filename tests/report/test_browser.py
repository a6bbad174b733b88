"""The page in headless Chromium: no error, no request, every slider moved, no sideways scrolling; light and dark."""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path

import pytest

from browser import CHROMIUM, FLAGS, IN_A_BROWSER
from drawings import write_npz
from lightning_maml.cli import main

pytestmark = IN_A_BROWSER

ONCE = [*FLAGS, "--virtual-time-budget=20000", "--dump-dom"]

# Stands first in the page, and tells the page around it what it has seen, once all is drawn and moved.
PROBE = """<script>
const seen = {errors: [], requests: [], widest: 0, narrow: [], sliders: {}};
addEventListener("error", (event) => seen.errors.push(String(event.message)));
addEventListener("unhandledrejection", (event) => seen.errors.push(String(event.reason)));
addEventListener("securitypolicyviolation", ({violatedDirective, blockedURI}) => {
  seen.requests.push(`${violatedDirective} ${blockedURI}`);
});
async function look() {
  if (document.documentElement.dataset.drawn !== "all") return setTimeout(look, 50);
  for (const slider of document.querySelectorAll("input[type=range]")) {
    const states = new Set();
    for (let step = 0; step <= Number(slider.max); step++) {
      slider.value = step;
      slider.dispatchEvent(new Event("input"));
      await new Promise((done) => setTimeout(done, 20));
      const section = slider.closest("section");
      states.add([...section.querySelectorAll(".scatterlayer path, [data-slider] figcaption")].map(
        (part) => part.getAttribute("d") || part.textContent).join());
    }
    seen.sliders[slider.id] = states.size;
    slider.focus();
    seen.focused = document.activeElement === slider;
  }
  const root = document.documentElement;
  seen.widest = root.scrollWidth - root.clientWidth;
  seen.drawn = document.querySelectorAll(".plot svg.main-svg").length;
  seen.width = root.clientWidth;
  seen.paper = getComputedStyle(document.body).backgroundColor;
  const asked = performance.getEntriesByType("resource").map((one) => one.name);
  seen.requests.push(...asked.filter((name) => !name.startsWith("data:")));
  parent.postMessage(JSON.stringify(seen), "*");
}
addEventListener("load", look);
</script>"""
# A window of Chromium is 500 pixels wide at least; a frame may be narrower.
AROUND = """<!doctype html><body style="margin:0">
<iframe src="inner.html" width="{width}" height="900" style="border:0"></iframe>
<script>addEventListener("message", (event) => {{ document.body.dataset.seen = event.data; }});</script>"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of short runs."""
    folder = tmp_path_factory.mktemp("pages")
    pytest.importorskip("PIL.Image", reason="pillow is not installed")
    write_npz(folder)
    short = ["--trainer.max_steps=2", "--data.batches_per_epoch=2", "--trainer.accelerator=cpu", "--quiet", "--report"]
    few = ["--data.val_tasks=4", "--data.test_tasks=5", "--data.tasks_per_batch=4"]
    omniglot = [f"--data.root={folder}", "--data.ways=2", "--model.network.ways=2", "--data.split=[3,2,2]", *few]
    sinusoid = ["--model.updates_per_step=1", "--model.algorithm=maml_pp", *few]
    policy = ["--model.trajectories=2", "--data.tasks_per_batch=2", "--data.val_tasks=2", "--data.test_tasks=3"]
    options = {"sinusoid": sinusoid, "omniglot_5w1s": omniglot, "rl_navigation": policy}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, own in options.items():
            assert main(["fit", f"--config={name}", *short, *own]) == 0
    return {name: folder / "runs" / name / "version_0" / "report.html" for name in options}


@pytest.mark.parametrize("width", [360, 1600], ids=["narrow", "wide"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["sinusoid", "omniglot_5w1s", "rl_navigation"])
def test_a_page_works_in_a_browser(pages: dict[str, Path], tmp_path: Path, name: str, width: int, dark: bool) -> None:
    page = pages[name].read_text()
    (tmp_path / "inner.html").write_text(page.replace("<title>", f"{PROBE}<title>", 1))
    (tmp_path / "outer.html").write_text(AROUND.format(width=width))
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    places = [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={max(width, 500)},900", scheme]
    address = (tmp_path / "outer.html").as_uri()
    done = subprocess.run([str(CHROMIUM), *ONCE, *places, address], capture_output=True, text=True, timeout=120)
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert found is not None, done.stderr[-3000:]
    seen = json.loads(html.unescape(found[1]))
    assert (seen["errors"], seen["requests"]) == ([], [])
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert seen["width"] == width
    assert seen["widest"] == 0  # nothing sticks out
    assert seen["drawn"] >= page.count('class="plot"')
    assert seen["sliders"]
    assert seen["focused"]
    assert all(states > 1 for states in seen["sliders"].values())
    red = int(re.findall(r"\d+", seen["paper"])[0])
    assert red < 60 if dark else red > 200


def test_a_request_would_be_seen(pages: dict[str, Path], tmp_path: Path) -> None:
    asking = '<img src="https://example.invalid/a.png" alt="">'
    text = pages["sinusoid"].read_text().replace("</main>", f"{asking}</main>", 1)
    (tmp_path / "inner.html").write_text(text.replace("<title>", f"{PROBE}<title>", 1))
    (tmp_path / "outer.html").write_text(AROUND.format(width=800))
    places = [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "outer.html").as_uri()]
    done = subprocess.run([str(CHROMIUM), *ONCE, *places], capture_output=True, text=True, timeout=120)
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert found is not None, done.stderr[-3000:]
    assert any(one.startswith("img-src") for one in json.loads(html.unescape(found[1]))["requests"])
