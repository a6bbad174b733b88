/** A chart with two axes, as wide as its place, drawn again whenever that changes. */

import { axisBottom, axisLeft } from "d3-axis";
import { scaleLinear, scaleLog, type ScaleContinuousNumeric } from "d3-scale";
import { select, type Selection } from "d3-selection";
import { line } from "d3-shape";
import { element } from "../page";
import type { Point } from "../state";

type Scale = ScaleContinuousNumeric<number, number>;

export interface Options {
  /** What the picture shows, for those who do not see it. */
  label: string;
  x: Point;
  y: Point;
  xLabel: string;
  yLabel: string;
  /** height for each unit of width */
  ratio?: number;
  /** Whether the place within the axes is a square, for axes of the same unit. */
  isSquare?: boolean;
  /** in pixels, on the narrowest of screens */
  leastHeight?: number;
  isLog?: boolean;
  /** Whether a keyboard may reach it. */
  isFocusable?: boolean;
}

const MARGIN = { top: 10, right: 12, bottom: 38, left: 56 };
let charts = 0;

export class Chart {
  readonly x: Scale = scaleLinear();
  readonly y: Scale;
  /** What is drawn within the axes. */
  readonly plot: Selection<SVGGElement, unknown, null, undefined>;
  readonly svg: SVGSVGElement;
  private readonly place = element("div", { class: "chart" });
  private readonly frame: Selection<SVGSVGElement, unknown, null, undefined>;
  private readonly observer: ResizeObserver;
  private width = 0;

  /** `paint` draws what the chart shows, by `line` and `dots`, or into `plot` itself. */
  constructor(parent: HTMLElement, private readonly options: Options, private readonly paint: (chart: Chart) => void) {
    this.y = options.isLog ? scaleLog() : scaleLinear();
    this.x.domain(options.x);
    this.y.domain(options.y);
    this.frame = select(this.place).append("svg").attr("role", "img").attr("aria-label", options.label);
    this.svg = this.frame.node()!;
    if (options.isFocusable) this.frame.attr("tabindex", 0).attr("role", "application");
    const clip = `clip-${charts++}`;
    this.frame.append("clipPath").attr("id", clip).append("rect");
    this.frame.append("g").attr("class", "axis x");
    this.frame.append("g").attr("class", "axis y");
    this.plot = this.frame.append("g").attr("clip-path", `url(#${clip})`);
    this.frame.append("text").attr("class", "label x").attr("text-anchor", "middle").text(options.xLabel);
    this.frame.append("text").attr("class", "label y").attr("text-anchor", "middle").text(options.yLabel);
    parent.append(this.place);
    this.observer = new ResizeObserver(() => this.place.clientWidth !== this.width && this.resize());
    this.observer.observe(this.place);
    this.resize();
  }

  close(): void {
    this.observer.disconnect();
  }

  /** Other limits of the axes. */
  domain(x: Point, y: Point): void {
    this.x.domain(x);
    this.y.domain(y);
    this.axes();
    this.draw();
  }

  draw(): void {
    if (this.width) this.paint(this);
  }

  private resize(): void {
    this.width = this.place.clientWidth;
    if (!this.width) return;
    const { top, right, bottom, left } = MARGIN;
    const { ratio = 0.6, leastHeight = 0 } = this.options, rectangle = Math.round(Math.min(Math.max(this.width * ratio, leastHeight), 560));
    const height = this.options.isSquare ? this.width - left - right + top + bottom : rectangle;
    this.frame.attr("width", this.width).attr("height", height);
    this.x.range([left, this.width - right]);
    this.y.range([height - bottom, top]);
    const inner = { width: this.width - left - right, height: height - top - bottom };
    this.frame.select("rect").attr("x", left).attr("y", top).attr("width", inner.width).attr("height", inner.height);
    this.frame.select(".label.x").attr("x", left + inner.width / 2).attr("y", height - 4);
    this.frame.select(".label.y").attr("transform", `translate(12 ${top + inner.height / 2}) rotate(-90)`);
    this.axes();
    this.draw();
  }

  private axes(): void {
    const bottom = this.y.range()[0]!, left = this.x.range()[0]!;
    const many = Math.max(2, Math.round(this.width / 90));
    this.frame.select<SVGGElement>(".axis.x").attr("transform", `translate(0 ${bottom})`).call(axisBottom(this.x).ticks(many));
    const vertical = this.options.isLog ? axisLeft(this.y).ticks(4, "~g") : axisLeft(this.y).ticks(5);
    this.frame.select<SVGGElement>(".axis.y").attr("transform", `translate(${left} 0)`).call(vertical);
  }

  /** A line through points, by name: drawn anew where it is there already. Points that are no numbers are left out. */
  line(name: string, points: Iterable<Point>, className: string): void {
    const path = line<Point>(([x]) => this.x(x), ([, y]) => this.y(y)).defined(([, y]) => Number.isFinite(y) && (!this.options.isLog || y > 0));
    this.named("path", name).attr("class", `line ${className}`).attr("d", path([...points]));
  }

  /** Circles at points. */
  dots(name: string, points: Iterable<Point>, className: string, radius = 5): void {
    this.named("g", name).selectAll("circle").data([...points]).join("circle").attr("class", className).attr("r", radius)
      .attr("cx", ([x]) => this.x(x)).attr("cy", ([, y]) => this.y(y));
  }

  /** The one element of a name in the plot. */
  named<K extends "path" | "g">(tag: K, name: string): Selection<SVGElementTagNameMap[K], unknown, SVGGElement, unknown> {
    return this.plot.selectAll<SVGElementTagNameMap[K], unknown>(`[data-name="${name}"]`).data([null]).join(tag).attr("data-name", name) as never;
  }

  /** Where an event points, in numbers of the axes. */
  at(event: MouseEvent): Point {
    const box = this.svg.getBoundingClientRect();
    return [this.x.invert(event.clientX - box.left), this.y.invert(event.clientY - box.top)];
  }
}
