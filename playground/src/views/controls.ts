/** Controls that hold one property of a page's state each. */

import { element } from "../page";
import type { Schema, State } from "../state";

type Names<S extends Schema, T> = { [K in keyof S]: State<S>["values"][K] extends T ? K : never }[keyof S] & string;

/** A slider over `values`, or over whole numbers from the first to the last. */
export function slider<S extends Schema>(
  parent: HTMLElement, state: State<S>, name: Names<S, number>, label: string, [low, high, step]: readonly [number, number, number],
): void {
  const input = element("input", { type: "range", id: `control-${name}`, min: `${low}`, max: `${high}`, step: `${step}` });
  const shown = element("output", { for: input.id });
  input.addEventListener("input", () => state.set({ [name]: Number(input.value) } as never));
  parent.append(element("div", { class: "control" }, element("label", { for: input.id }, label), shown, input));
  follow(state, name, () => {
    input.value = String(state.values[name]);
    shown.textContent = state.schema[name]!.write(state.values[name]);
  });
}

/** A field for a whole number, such as a seed. */
export function field<S extends Schema>(parent: HTMLElement, state: State<S>, name: Names<S, number>, label: string): void {
  const input = element("input", { type: "text", inputmode: "numeric", id: `control-${name}`, size: "6" });
  input.addEventListener("change", () => {
    const value = state.schema[name]!.read(input.value.trim());
    if (value === undefined) input.value = String(state.values[name]);
    else state.set({ [name]: value } as never);
  });
  parent.append(element("div", { class: "control" }, element("label", { for: input.id }, label), input));
  follow(state, name, () => (input.value = String(state.values[name])));
}

/** One of several words. */
export function select<S extends Schema>(
  parent: HTMLElement, state: State<S>, name: Names<S, string>, label: string, options: Record<string, string>,
): void {
  const input = element("select", { id: `control-${name}` });
  for (const [value, text] of Object.entries(options)) input.append(element("option", { value }, text));
  input.addEventListener("change", () => state.set({ [name]: input.value } as never));
  parent.append(element("div", { class: "control" }, element("label", { for: input.id }, label), input));
  follow(state, name, () => (input.value = String(state.values[name])));
}

/** A box for each of several words: those that are ticked are the ones that the state does not name. */
export function toggles<S extends Schema, T extends string>(
  parent: HTMLElement, state: State<S>, name: Names<S, readonly T[]>, label: string, options: readonly { name: T; title: string; className: string }[],
): void {
  const group = element("fieldset", { class: "toggles" }, element("legend", {}, label));
  const boxes = options.map((option) => {
    const box = element("input", { type: "checkbox", id: `control-${name}-${option.name}` });
    box.addEventListener("change", () => {
      state.set({ [name]: options.filter((_, i) => !boxes[i]!.checked).map((one) => one.name) } as never);
    });
    group.append(element("label", {}, box, element("span", { class: option.className }, option.title)));
    return box;
  });
  parent.append(group);
  follow(state, name, () => boxes.forEach((box, i) => (box.checked = !(state.values[name] as readonly T[]).includes(options[i]!.name))));
}

export function button(parent: HTMLElement, label: string, onClick: () => void): HTMLButtonElement {
  const made = element("button", { type: "button" }, label);
  made.addEventListener("click", onClick);
  parent.append(made);
  return made;
}

/** Draws now and whenever the property changes. */
function follow<S extends Schema>(state: State<S>, name: keyof S, draw: () => void): void {
  draw();
  state.watch((changed) => changed.has(name) && draw());
}

/** A table of numbers: a head, and a row a name. */
export class Table {
  private readonly body = element("tbody");

  constructor(parent: HTMLElement, caption: string, head: string[]) {
    const names = element("tr", {}, ...["", ...head].map((text) => element("th", { scope: "col" }, text)));
    parent.append(element("table", {}, element("caption", {}, caption), element("thead", {}, names), this.body));
  }

  show(rows: { name: string; className?: string; cells: string[] }[]): void {
    this.body.replaceChildren(
      ...rows.map(({ name, className, cells }) => {
        const first = element("th", { scope: "row", class: className ?? "" }, name);
        return element("tr", {}, first, ...cells.map((cell) => element("td", { class: /\d/.test(cell) ? "" : "words" }, cell)));
      }),
    );
  }
}

/** Three digits that count, or what is no number in words. */
export function shown(value: number): string {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "not a number" : "infinite";
  if (value !== 0 && (Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3)) return value.toExponential(1);
  return Math.abs(value) >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
}
