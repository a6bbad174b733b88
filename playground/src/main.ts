/** Opens the page that the address names, and keeps its state there. */

import "./style.css";
import * as numerics from "./numerics";
import { compiled } from "./numerics/kernel";
import { element, type Opened, type Page } from "./page";
import { PAGES } from "./pages";
import { State } from "./state";
import { Training } from "./training";
import { button } from "./views/controls";

const module = compiled();
const tabs = element("nav", { "aria-label": "Pages" });
const main = element("main");
let opened: Opened | null = null;
let state: State<any> | null = null;

function header(): HTMLElement {
  for (const { name, title } of PAGES) tabs.append(element("a", { href: `#${name}` }, title));
  return element("header", {}, element("strong", {}, "lightning-maml"), " ", element("span", {}, "playground"), tabs);
}

async function open(): Promise<void> {
  const [name, query = ""] = decodeURI(location.hash.slice(1)).split("?", 2);
  const page: Page<any> = PAGES.find((one) => one.name === name) ?? PAGES[0]!;
  opened?.close();
  const own = new State(page.schema);
  const complaints = own.read(query);
  if (name && page.name !== name) complaints.unshift(`Expected one of the pages ${PAGES.map((one) => one.name).join(", ")} but got "${name}".`);
  state = own;
  for (const link of tabs.querySelectorAll("a")) link.toggleAttribute("aria-current", link.hash === `#${page.name}`);
  document.title = `${page.title} · lightning-maml`;

  const figures = element("div", { class: "figures" }), controls = element("div", { class: "controls" });
  const said = element("p", { class: "notice", role: "status" });
  const notice = (text: string) => {
    said.textContent = text;
    said.hidden = !text;
  };
  notice(complaints.join(" "));
  const commands = element("div", { class: "commands" });
  main.replaceChildren(element("h1", {}, page.title), element("p", { class: "about" }, page.about), said, figures, controls);
  // what a page says while it opens does not wipe out what is wrong with the address
  let wrong = complaints.join(" ");
  own.watch(() => (wrong = ""));
  opened = page.open({ figures, controls, notice: (text) => notice(`${wrong} ${text}`.trim()) }, own, await module);
  button(commands, "Reset", () => own.read(""));
  button(commands, "Copy link", () => copy(location.href, "link"));
  button(commands, "Copy as Python", () => opened && copy(opened.python(), "program"));
  controls.append(commands);
  own.watch(() => keep(page, own));
  keep(page, own);
  document.documentElement.dataset.page = page.name;
  performance.mark("drawn");

  async function copy(text: string, what: string): Promise<void> {
    try {
      await navigator.clipboard.writeText(text);
      notice(`The ${what} is in the clipboard.`);
    } catch {
      // a page that was opened from a folder may not write there
      const area = element("textarea", { readonly: "", rows: "12", "aria-label": `The ${what}` }, text);
      controls.querySelector("textarea")?.remove();
      controls.append(area);
      area.select();
      notice(`The ${what} stands below, selected.`);
    }
  }
}

const BETWEEN = 60; // milliseconds: Chromium drops what exceeds 200 changes of the address in ten seconds, Safari throws
let written = 0, later = 0;

/** Writes a state to the address, without a new entry in the history for each move of a slider, now or a moment later. */
function keep(page: Page<any>, own: State<any>): void {
  clearTimeout(later);
  if (own !== state) return;
  const wait = written + BETWEEN - performance.now();
  if (wait > 0) return void (later = setTimeout(() => keep(page, own), wait));
  const query = own.write();
  written = performance.now();
  history.replaceState(null, "", `#${page.name}${query && "?"}${query}`);
}

document.body.append(header(), main);
addEventListener("hashchange", () => void open());
void open();

// what tests ask, and who likes the console
Object.assign(globalThis, {
  playground: { numerics, module, Training, numbers: () => opened?.numbers(), history: () => opened?.history?.(), python: () => opened?.python(), state: () => state?.values },
});
