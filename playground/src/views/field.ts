/** A square field with a goal in it, which is put down by a click, dragged, or moved by arrow keys. */

import { symbol, symbolStar } from "d3-shape";
import type { Point } from "../state";
import { Chart } from "./chart";

export interface FieldOptions {
  /** What the picture shows, for those who do not see it. */
  label: string;
  name: string;
  /** Of both coordinates of the goal, and of the axes. */
  limits: Point;
  plane: Point;
  /** Half the side of a square that is dotted. */
  square: number;
}

const STAR = symbol(symbolStar, 190)()!;
const KEYS: Record<string, Point> = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

export class Field {
  goal: Point = [0, 0];
  private readonly chart: Chart;

  /** `paint` draws what is in the field; `put` is told where the goal is while it moves, and `keep` when it rests. */
  constructor(
    parent: HTMLElement, private readonly options: FieldOptions, paint: (chart: Chart) => void,
    private readonly put: (at: Point) => void, private readonly keep: () => void,
  ) {
    const { label, plane, square: s } = options;
    const axes = { x: plane, y: plane, xLabel: "x", yLabel: "y", isSquare: true };
    this.chart = new Chart(parent, { label, ...axes, isFocusable: true }, (chart) => {
      chart.line("border", [[-s, -s], [s, -s], [s, s], [-s, s], [-s, -s]], "border");
      paint(chart);
      const handle = chart.named("g", "goal").attr("class", "goal").attr("transform", `translate(${chart.x(this.goal[0])} ${chart.y(this.goal[1])})`);
      if (handle.node()!.nextSibling) handle.raise(); // once: a finger may be on it
      handle.selectAll("circle").data([null]).join("circle").attr("r", 20);
      handle.selectAll("path").data([null]).join("path").attr("d", STAR);
    });
    this.listen(this.chart.svg);
  }

  draw(): void {
    this.chart.draw();
  }

  close(): void {
    this.chart.close();
  }

  private listen(svg: SVGSVGElement): void {
    let isDragged = false;
    const isOnGoal = ({ target }: Event) => (target as Element).closest(".goal") !== null;
    // Chromium takes touch-action from the whole picture alone, beside whose goal a finger is to scroll the page
    svg.addEventListener("touchstart", (event) => isOnGoal(event) && event.preventDefault(), { passive: false });
    svg.addEventListener("pointerdown", (event) => {
      // a finger beside the goal scrolls the page, or taps: then a click follows
      if (event.button !== 0 || (event.pointerType === "touch" && !isOnGoal(event))) return;
      isDragged = this.moved(this.chart.at(event));
      if (isDragged) svg.setPointerCapture(event.pointerId);
    });
    svg.addEventListener("pointermove", (event) => void (isDragged && this.moved(this.within(this.chart.at(event)))));
    for (const end of ["pointerup", "pointercancel"] as const) {
      svg.addEventListener(end, () => {
        if (isDragged) this.keep();
        isDragged = false;
      });
    }
    svg.addEventListener("click", (event) => void (this.moved(this.chart.at(event)) && this.keep()));
    svg.addEventListener("keydown", (event) => {
      const move = KEYS[event.key], step = event.shiftKey ? 0.01 : 0.05;
      if (!move) return;
      event.preventDefault();
      this.moved(this.within([this.goal[0] + step * move[0], this.goal[1] + step * move[1]]));
      this.keep();
    });
  }

  /** Puts the goal to a place in the field; whether it is one. */
  private moved(at: Point): boolean {
    const [low, high] = this.options.plane;
    if (at.some((one) => one < low || one > high)) return false;
    this.put(this.within(at));
    return true;
  }

  private within(at: Point): Point {
    const [low, high] = this.options.limits, [x, y] = at.map((one) => Math.min(high, Math.max(low, one)));
    return [x!, y!];
  }
}
