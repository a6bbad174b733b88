/** What a page of the playground is, and what stands on every one. */

import type { Point, Schema, State } from "./state";

export interface Page<S extends Schema> {
  /** in the address */
  readonly name: string;
  readonly title: string;
  /** What to see, in two sentences. */
  readonly about: string;
  readonly schema: S;
  /** Draws the page into a frame, and watches its state. */
  open(frame: Frame, state: State<S>, module: WebAssembly.Module): Opened;
}

export interface Opened {
  /** The numbers that are shown, by name. */
  numbers(): Record<string, number>;
  /** A program that prints the same numbers by `lightning_maml`, as JSON. */
  python(): string;
  close(): void;
  /** Of a page that trains: held-out error against updates, a line a learner. */
  history?(): readonly (readonly Point[])[];
}

/** The places of a page: pictures, controls beside them, and a line that says what is unusual. */
export interface Frame {
  readonly figures: HTMLElement;
  readonly controls: HTMLElement;
  /** Says something, or takes it back. */
  notice(text: string): void;
}

/** An element with attributes and children. */
export function element<K extends keyof HTMLElementTagNameMap>(
  tag: K, attributes: Record<string, string> = {}, ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
