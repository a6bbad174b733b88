"""The playground in Chromium on one core: its weight, its first picture, meta-updates a second, frames a second.

    python -m benchmarks.playground [--seconds 6] [--runs 5] [--json FILE]

``make playground`` first. All processes of the browser share one core. *kernel*: MAML with one inner step on the
sinusoid (25 tasks, 10 + 10 rows, 1-40-40-1, tasks drawn and Adam included) in the page's worker, while an animation
counts the frames of the page. *page*: what a newcomer sees, MAML with two inner steps and the baseline side by side,
drawn thirty times a second; and after how long MAML's error on held-out tasks is below half of the baseline's.
"""

import gzip
import os
import shutil
import statistics
from pathlib import Path
from typing import Any

from benchmarks.result_file import ResultFile, command_line

REPOSITORY = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

COUNT = """(seconds) => new Promise((done) => {
  let frames = 0, begin = 0;
  requestAnimationFrame(function frame(now) {
    begin ||= now;
    if (now - begin >= 1000 * seconds) done(frames / seconds);
    else { frames++; requestAnimationFrame(frame); }
  });
})"""
# as many updates as fit, after half a second of warming up
TRAINED = f"""async ([seconds, learners]) => {{
  const {{ Training, module }} = playground, seen = [];
  const training = new Training(await module, ({{ updates }}) => seen.push([performance.now(), updates]));
  training.start({{ seed: 0, updates: 1e6, heldOutSteps: 0, learners }});
  await new Promise((done) => setTimeout(done, 500));
  seen.length = 0;
  const frames = await ({COUNT})(seconds);
  training.stop();
  const [first, last] = [seen[0], seen.at(-1)];
  return {{ updates_per_second: 1000 * (last[1] - first[1]) / (last[0] - first[0]), frames_per_second: frames }};
}}"""
PAINTED = """() => ({
  painted_ms: performance.getEntriesByName("first-contentful-paint")[0].startTime,
  drawn_ms: performance.getEntriesByName("drawn")[0].startTime,
})"""


def kernel(browser: Any, address: str, seconds: float) -> dict[str, float]:
    """Updates and frames a second of one learner in the worker."""
    tab = browser.new_page()
    tab.goto(f"{address}#sine?updates=100")
    tab.wait_for_selector(".progress[data-done=true]")
    learner = {"name": "maml", "settings": {"rate": 0.01, "steps": 1, "outerRate": 0.001}}
    found = tab.evaluate(TRAINED, [seconds, [learner]])
    tab.close()
    return found


def page(browser: Any, address: str, seconds: float) -> dict[str, float]:
    """The first page from its opening: when it paints, how fast it trains and draws, when MAML has won."""
    tab = browser.new_page()
    tab.goto(f"{address}#sine?updates=30000")
    tab.wait_for_selector("html[data-page]")
    found = tab.evaluate(PAINTED)
    wins = tab.evaluate(
        """() => new Promise((done) => setInterval(() => {
          const [maml, pretrained] = playground.history().map((line) => line.at(-1)?.[1]);
          if (maml < pretrained / 2) done(performance.now() / 1000);
        }, 20))"""
    )
    frames = tab.evaluate(COUNT, seconds)
    said = tab.locator(".progress").inner_text()
    tab.close()
    rate = float(said.split(", ")[1].split()[0].replace(",", ""))
    return {**found, "maml_wins_s": wins, "updates_per_second": rate, "frames_per_second": frames}


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = command_line(__doc__)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    single = REPOSITORY / "playground" / "dist" / "playground.html"
    if not single.is_file():
        parser.error("Expected playground/dist/playground.html but it is not there: run `make playground`.")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # children inherit it
    results = ResultFile(options.json, "playground", key=("what",), seconds=options.seconds, runs=options.runs)
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        results.add(
            what="weight", bytes=single.stat().st_size, gzipped=len(gzip.compress(single.read_bytes())),
            browser=browser.version,
        )  # fmt: skip
        for measure in (kernel, page):
            runs = [measure(browser, single.as_uri(), options.seconds) for _ in range(options.runs)]
            spread = {
                name: [round(f([run[name] for run in runs]), 2) for f in (statistics.median, min, max)]
                for name in runs[0]
            }
            results.add(what=measure.__name__, **spread)
        browser.close()


if __name__ == "__main__":
    main()
