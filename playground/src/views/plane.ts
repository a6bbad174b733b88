/** A plane of two parameters: contours of a function, and handles that one drags, or moves by the keyboard. */

import { contours, type ContourMultiPolygon } from "d3-contour";
import { symbol, symbolStar } from "d3-shape";
import { grid } from "../numerics/plane";
import type { Point } from "../state";
import { Chart, type Options } from "./chart";

export const X: Point = [-5, 5];
export const Y: Point = [-3, 3];
const FINE = 120, COARSE = 60; // cells each way, at rest and while something moves
const REST = 150; // milliseconds after which nothing moves any more
const LEVELS = 16;

export interface Handle {
  name: string;
  /** One letter, or two. */
  text: string;
  label: string;
  className: string;
  at: Point;
}

export interface Content {
  height(at: Point): number;
  /** What the height depends on: contours are drawn anew where it changes. */
  key: string;
  handles: Handle[];
}

export class Plane {
  readonly chart: Chart;
  private cells = FINE;
  private drawn = "";
  private areas: ContourMultiPolygon[] = [];
  private timer = 0;

  /** `paint` draws between the contours and the handles; `move` is told where a handle goes. */
  constructor(
    parent: HTMLElement, options: Pick<Options, "label" | "xLabel" | "yLabel">, private readonly content: () => Content,
    private readonly paint: (chart: Chart) => void, private readonly move: (name: string, to: Point) => void,
  ) {
    this.chart = new Chart(parent, { ...options, x: X, y: Y }, (chart) => this.show(chart));
    this.chart.svg.setAttribute("role", "group"); // a picture would hide its handles from a screen reader
  }

  /** Draws, coarsely where the contours change, and finely a little later. */
  draw(): void {
    if (this.content().key !== this.drawn) {
      this.cells = COARSE;
      clearTimeout(this.timer);
      this.timer = setTimeout(() => {
        this.cells = FINE;
        this.drawn = "";
        this.chart.draw();
      }, REST);
    }
    this.chart.draw();
  }

  close(): void {
    clearTimeout(this.timer);
    this.chart.close();
  }

  private show(chart: Chart): void {
    const { height, key, handles } = this.content();
    if (key !== this.drawn) {
      const values = grid(height, X, Y, this.cells, this.cells), [low, high] = [Math.min(...values), Math.max(...values)];
      // closer together where the function is low, which is where one looks
      const levels = Array.from({ length: LEVELS }, (_, i) => low + (high - low) * ((i + 1) / (LEVELS + 1)) ** 2);
      this.areas = contours().size([this.cells, this.cells]).thresholds(levels)(values as unknown as number[]);
      this.drawn = key;
      chart.svg.dataset.cells = String(this.cells);
    }
    const at = (value: number, [low, high]: Point) => low + (value / this.cells) * (high - low);
    const outline = ({ coordinates }: ContourMultiPolygon) =>
      coordinates.flat().map((ring) => `M${ring.map(([x, y]) => `${chart.x(at(x!, X)).toFixed(1)},${chart.y(at(y!, Y)).toFixed(1)}`).join("L")}Z`).join("");
    chart.named("g", "contours").attr("class", "contours").selectAll("path").data(this.areas).join("path").attr("d", outline);
    this.paint(chart);
    this.showHandles(chart, handles);
  }

  private showHandles(chart: Chart, handles: Handle[]): void {
    const to = (name: string, [x, y]: Point) => this.move(name, [within(x, X), within(y, Y)]);
    const groups = chart.named("g", "handles").raise().selectAll<SVGGElement, Handle>("g").data(handles, (handle) => handle.name).join((enter) => {
      const made = enter.append("g").attr("tabindex", 0).attr("role", "button").attr("aria-roledescription", "point to drag");
      made.append("circle").attr("class", "reach").attr("r", 20);
      made.append("circle").attr("class", "knob").attr("r", 10);
      made.append("text").attr("dy", "0.35em").attr("text-anchor", "middle");
      // Chromium does not see touch-action on parts of a picture
      made.on("touchstart", (event: TouchEvent) => event.preventDefault(), { passive: false });
      made.on("pointerdown", function (event: PointerEvent) {
        this.setPointerCapture(event.pointerId);
      });
      made.on("pointermove", function (event: PointerEvent, handle) {
        if (this.hasPointerCapture(event.pointerId)) to(handle.name, chart.at(event));
      });
      made.on("keydown", (event: KeyboardEvent, handle) => {
        const moves: Record<string, Point> = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
        const way = moves[event.key], far = event.shiftKey ? 0.01 : 0.1;
        if (!way) return;
        event.preventDefault();
        to(handle.name, [handle.at[0] + far * way[0], handle.at[1] + far * way[1]]);
      });
      return made;
    });
    groups.attr("class", ({ className }) => `handle ${className}`).attr("data-handle", ({ name }) => name)
      .attr("transform", ({ at: [x, y] }) => `translate(${chart.x(x)} ${chart.y(y)})`)
      .attr("aria-label", ({ label, at }) => `${label} at ${at.join(", ")}: drag it, or move it by the arrow keys`);
    groups.select("text").text(({ text }) => text);
  }
}

const within = (value: number, [low, high]: Point) => Number(Math.min(high, Math.max(low, value)).toFixed(2));

/** A star at a point. */
export function star(chart: Chart, name: string, [x, y]: Point, className: string): void {
  const size = chart.svg.clientWidth < 500 ? 80 : 170;
  chart.named("path", `star-${name}`).attr("class", `star ${className}`).attr("d", symbol(symbolStar, size)())
    .attr("transform", `translate(${chart.x(x)} ${chart.y(y)})`);
}
