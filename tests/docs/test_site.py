"""The site: it builds without a warning, opens in a browser, asks no other host, and its search answers questions."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import pytest

import lightning_maml
from browser import CHROMIUM, FLAGS, IN_A_BROWSER

pytest.importorskip("mkdocs", reason="needs the extra `docs`")

# in a user's words, and the page that answers; "page#part" where the part is meant
QUESTIONS = {
    "how do I predict for a new task": {"faq.html", "serving.html", "index.html"},
    "accuracy at chance when I send one image": {"faq.html", "serving.html"},
    "loss is nan": {"faq.html"},
    "use it without lightning": {"faq.html", "guide.html"},
    "freeze the first layers": {"how_to/freeze.html"},
    "how many GPUs": {"faq.html", "how_to/many_gpus.html", "distributed.html"},
    "train on several machines with SLURM": {"how_to/many_gpus.html"},
    "my own network": {"how_to/network.html"},
    "custom loss function": {"how_to/loss_and_metric.html"},
    "my own inner step": {"how_to/inner_step.html"},
    "CSV file": {"own_data.html", "reference/data.html"},
    "folder of images": {"own_data.html", "reference/data.html"},
    "export to ONNX": {"serving.html", "reference/saving.html"},
    "pretrained weights": {"guide.html", "reference/saving.html"},
    "resume a killed job": {"reliability.html", "faq.html"},
    "LoRA transformer": {"how_to/lora.html"},
    "reproduce published results": {"results.html"},
    "which engine runs": {"engines.html", "faq.html"},
    "wandb": {"how_to/loggers.html"},
    "moving from higher": {"coming_from/higher.html"},
    "policy gradient environment": {"rl.html", "reference/rl.html"},
    "memory of many inner steps": {"results.html", "engines.html", "faq.html", "guide.html"},
    "tutorial meta-gradient": {"tutorial/2_a_meta_gradient.html"},
    "which algorithm should I use": {"choosing.html"},
    "learn the inner learning rate": {"guide.html", "reference/inner.html", "reference/algorithms.html"},
}

HARNESS = """<!doctype html><body><script>
const pages = PAGES, questions = QUESTIONS, width = WIDTH, seen = {pages: {}, found: {}};
const opened = (page) => new Promise((done) => {
  const frame = document.createElement("iframe");
  Object.assign(frame, {src: page, width, height: 900, style: "border:0"});
  frame.addEventListener("load", () => setTimeout(() => {
    const root = frame.contentDocument.documentElement;
    const asked = frame.contentWindow.performance.getEntriesByType("resource").map((one) => one.name);
    seen.pages[page] = {
      foreign: asked.filter((name) => !name.startsWith(location.origin) && !name.startsWith("data:")),
      sideways: root.scrollWidth - root.clientWidth, width: root.clientWidth,
      title: frame.contentDocument.title,
    };
    frame.remove();
    done();
  }, 50));
  document.body.append(frame);
});
const answered = async () => {
  const index = await (await fetch("search/search_index.json")).json();
  const worker = new Worker("WORKER");
  const told = (type) => new Promise((done) => worker.addEventListener("message", function one(message) {
    if (message.data.type === type) { worker.removeEventListener("message", one); done(message.data.data); }
  }));
  const ready = told(1);
  worker.postMessage({type: 0, data: {config: index.config, docs: index.docs, options: {suggest: false}}});
  await ready;
  for (const question of questions) {
    const result = told(3);
    worker.postMessage({type: 2, data: question});
    seen.found[question] = (await result).items.map((of_page) => of_page[0].location);
  }
};
(async () => {
  for (const page of pages) await opened(page);
  if (questions.length) await answered();
  await fetch("seen", {method: "POST", body: JSON.stringify(seen)});
})();
</script>"""


def built(repository: Path, into: Path, config: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(into)]
    command += ["--config-file", str(config or repository / "mkdocs.yml")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = built(repository, folder)
    assert done.returncode == 0, done.stderr[-5000:]
    assert "WARNING" not in done.stderr
    return folder


class Handler(SimpleHTTPRequestHandler):
    """Serves the site, and keeps what a page tells of it."""

    told: SimpleQueue[dict[str, Any]] = SimpleQueue()

    def do_POST(self) -> None:
        self.told.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=site))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def pages_of(site: Path) -> list[str]:
    return sorted(str(path.relative_to(site)) for path in site.rglob("*.html") if "harness" not in path.name)


def looked(site: Path, address: str, folder: Path, width: int, questions: list[str]) -> tuple[dict[str, Any], str]:
    """What the browser saw of all pages, and what it wrote to its console."""
    (worker,) = (site / "assets" / "javascripts" / "workers").glob("search.*.min.js")
    text = HARNESS.replace("PAGES", json.dumps(pages_of(site)), 1).replace("QUESTIONS", json.dumps(questions), 1)
    text = text.replace("WIDTH", str(width), 1).replace("WORKER", str(worker.relative_to(site)), 1)
    (site / f"harness_{width}.html").write_text(text)
    places = [f"--user-data-dir={folder / 'profile'}", f"--window-size={max(width, 500)},900"]
    command = [str(CHROMIUM), *FLAGS, *places, "--remote-debugging-port=0", f"{address}/harness_{width}.html"]
    with (folder / "console.txt").open("w") as console, subprocess.Popen(command, stderr=console) as browser:
        try:
            seen = Handler.told.get(timeout=180)
        finally:
            browser.terminate()
    return seen, (folder / "console.txt").read_text()


def test_notebooks_show_what_they_print(site: Path) -> None:
    folders = site / "notebooks", site / "tutorial"
    shown = {path.stem: path.read_text() for folder in folders for path in sorted(folder.glob("*.html"))}
    assert "after 10 steps: " in shown["sinusoid"]
    assert "off by 0." in shown["own_csv"]
    assert "are right; by chance it would be 20" in shown["omniglot"]
    assert "accuracy on new classes: 0." in shown["5_few_shot_images"]
    assert len(shown) == 9
    assert [name for name, text in shown.items() if "data:image/png;base64," not in text] == ["own_csv"]
    assert not [name for name, text in shown.items() if "Traceback" in text or "Warning:" in text]


@IN_A_BROWSER
@pytest.mark.parametrize("width", [360, 1600])
def test_every_page_opens(site: Path, address: str, tmp_path: Path, width: int) -> None:
    seen, said = looked(site, address, tmp_path, width, [])
    assert sorted(seen["pages"]) == pages_of(site)
    assert len(seen["pages"]) > 25
    assert [line for line in said.splitlines() if "CONSOLE" in line] == []
    for page, found in seen["pages"].items():
        assert (found["foreign"], found["sideways"], found["width"]) == ([], 0, width), page
        assert "lightning-maml" in found["title"]


@IN_A_BROWSER
def test_the_search_answers(site: Path, address: str, tmp_path: Path) -> None:
    seen, said = looked(site, address, tmp_path, 1000, list(QUESTIONS))
    # where its search fails, Material's worker answers with nothing, and says why in the console alone
    assert [line for line in said.splitlines() if "CONSOLE" in line] == []
    first = {
        question: list(dict.fromkeys(place.partition("#")[0] for place in found))[:3]
        for question, found in seen["found"].items()
    }
    assert {question: found for question, found in first.items() if not QUESTIONS[question] & {*found}} == {}


def test_the_front_page_leads_with_the_picture_and_has_few_links(repository: Path) -> None:
    text = (repository / "docs/index.md").read_text()
    assert text.index("![") < text.index("```")
    links = re.findall(r"(?<!!)\[[^\]]*\]\(", text)
    assert 5 < len(links) <= 25


def test_every_public_name_has_one_place_in_the_reference(repository: Path) -> None:
    pages = {path.name: path.read_text() for path in (repository / "docs/reference").glob("*.md")}
    places = {
        name: [page for page, text in pages.items() if re.search(rf"^::: lightning_maml\.(\w+\.)*{name}$", text, re.M)]
        for name in lightning_maml.__all__
    }
    assert {name: found for name, found in places.items() if len(found) != 1} == {}


def test_quoted_messages_are_those_of_the_code(repository: Path) -> None:
    code = "\n".join(path.read_text() for path in (repository / "lightning_maml").rglob("*.py"))
    quoted = re.findall(r"^> (.*)$", (repository / "docs/faq.md").read_text(), flags=re.MULTILINE)
    assert len(quoted) >= 4
    flat = re.sub(r'"\s*f?"', "", code)
    assert [message for message in quoted if message not in flat] == []


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("[a page](nowhere.md)", "nowhere.md"),
        ("[a part](guide.md#nothing-of-this-name)", "nothing-of-this-name"),
        ("::: lightning_maml.NothingOfThisName", "NothingOfThisName"),
    ],
)
def test_what_leads_nowhere_is_an_error(repository: Path, tmp_path: Path, broken: str, said: str) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for name in ("index.md", "guide.md"):
        (docs / name).write_text(f"# A page\n\n{broken if name == 'index.md' else ''}\n")
    config = (repository / "mkdocs.yml").read_text()
    head, _, _ = config.partition("nav:\n  - Start")
    head = head.replace("docs_dir: docs", f"docs_dir: {docs}").replace("docs/site/", f"{repository}/docs/site/")
    head = head.replace("extra_css: [site.css]\n", "").replace("paths: [.]", f"paths: [{repository}]")
    (tmp_path / "mkdocs.yml").write_text(head)
    done = built(repository, tmp_path / "site", tmp_path / "mkdocs.yml")
    assert done.returncode != 0
    assert said in done.stderr
