/** Curvature: what the second derivatives do, on one task with one parameter. */

import { Bowl, RULES, WIDTH, innerPath, metaLoss, type Vector } from "../numerics/plane";
import { element, type Frame, type Opened, type Page } from "../page";
import { number, whole, type Point, type State } from "../state";
import { Chart } from "../views/chart";
import { Table, shown, slider } from "../views/controls";
import { float, telling, unstable } from "./bowls";

const LINE: Point = [-2.5, 2.5];
const PLACES = Array.from({ length: 401 }, (_, i) => LINE[0] + (i / 400) * (LINE[1] - LINE[0]));
const TANGENT = 0.75; // to each side, in units of the x axis

const schema = {
  theta: number(0.25, ...LINE),
  stiffness: number(6.5, 0.5, 12, 1),
  rate: number(0.3, 0.01, 0.5),
  steps: whole(1, 0, 20),
};
type Values = State<typeof schema>["values"];

/** The bowl of the other pages, along its stiff direction, where its centre is 0. */
function along({ stiffness, rate, steps }: Values) {
  const tasks = [new Bowl([0, 0], 0, stiffness)] as const, [task] = tasks, inner = { rate, steps, proximal: 1 };
  const at = (x: number): Vector => [x, 0];
  return {
    loss: (x: number) => task.loss(at(x)),
    metaLoss: (x: number) => metaLoss(tasks, at(x), inner),
    /** MAML's gradient, and FOMAML's. */
    slopes: (x: number) => [RULES.maml(task, at(x), inner)[0], RULES.fomaml(task, at(x), inner)[0]] as const,
    /** After each inner step: phi, the curvature there, and d phi / d theta so far. */
    steps: (x: number) => {
      let product = 1;
      return innerPath(task, at(x), inner).map((phi) => {
        const curvature = task.hessian(phi)[0], row = { phi: phi[0], curvature, factor: 1 - rate * curvature, product };
        product *= row.factor;
        return row;
      });
    },
  };
}

function open(frame: Frame, state: State<typeof schema>): Opened {
  const tell = telling(frame);
  let found = solve();
  const axis = { x: LINE, y: [0, 1] as Point, xLabel: "θ", ratio: innerWidth < 600 ? 0.7 : 0.42, isFocusable: true };

  const meta = new Chart(
    frame.figures,
    { ...axis, label: "The loss after the inner steps, over where they begin, with both slopes at θ", yLabel: "loss after the steps" },
    (chart) => {
      const bands = chart.named("g", "uphill").selectAll("rect").data(found.uphill).join("rect").attr("class", "uphill");
      const [bottom, top] = chart.y.range() as [number, number];
      bands.attr("x", ([from]) => chart.x(from)).attr("width", ([from, to]) => chart.x(to) - chart.x(from)).attr("y", top).attr("height", bottom - top);
      chart.line("meta-loss", found.curve, "ink");
      for (const [i, name] of (["one", "two"] as const).entries()) chart.line(`slope-${name}`, tangent(found.slopes[i]!, chart), i ? `${name} dashed` : name);
      chart.dots("theta", [[state.values.theta, found.loss]], "point", 7);
    },
  );
  const legend = element("p", { class: "legend" }, "Tangents at θ: ");
  legend.append(element("span", { class: "one" }, "MAML's slope"), ", the true one; ", element("span", { class: "two" }, "FOMAML's slope"), ". Shaded: where FOMAML points uphill.");
  frame.figures.append(legend);

  const task = new Chart(
    frame.figures,
    { ...axis, label: "The loss of the task, and the inner steps on it from θ", yLabel: "loss of the task" },
    (chart) => {
      chart.line("loss", found.taskCurve, "ink");
      const steps = found.rows.map(({ phi }): Point => [phi, found.of.loss(phi)]);
      chart.line("steps", steps, "three thin");
      chart.dots("ends", steps.slice(1), "three", 4);
      chart.dots("theta", steps.slice(0, 1), "point", 7);
    },
  );
  frame.figures.append(element("p", { class: "legend" }, "The inner steps from θ. Where the curvature H is above 1 / rate, a step overshoots so far that what begins further right ends further left: 1 − rate·H is below 0."));

  const said = element("p", { role: "status" });
  const slopes = new Table(frame.controls, "At θ", ["slope"]);
  frame.controls.append(said);
  slider(frame.controls, state, "theta", "θ", [...LINE, 0.01]);
  slider(frame.controls, state, "stiffness", "Stiffness", [0.5, 12, 0.1]);
  slider(frame.controls, state, "rate", "Inner rate", [0.01, 0.5, 0.01]);
  slider(frame.controls, state, "steps", "Inner steps", [0, 20, 1]);
  const table = new Table(frame.controls, "dφ/dθ is the product of all 1 − rate·H", ["φ", "H", "1 − rate·H", "dφ/dθ"]);
  frame.controls.append(element("p", { class: "hint" }, "Drag in a picture to move θ, or choose a picture by Tab and use the arrows, with Shift in small steps."));

  function solve() {
    const { values } = state, of = along(values), rows = of.steps(values.theta);
    const signs = PLACES.map((x) => of.steps(x).at(-1)!.product < 0), half = (PLACES[1]! - PLACES[0]!) / 2;
    const uphill: Point[] = [];
    for (const [i, x] of PLACES.entries()) {
      if (!signs[i]) continue;
      if (signs[i - 1]) uphill[uphill.length - 1] = [uphill.at(-1)![0], x + half];
      else uphill.push([x - half, x + half]);
    }
    return {
      of, rows, uphill, slopes: of.slopes(values.theta), loss: of.metaLoss(values.theta),
      curve: PLACES.map((x): Point => [x, of.metaLoss(x)]), taskCurve: PLACES.map((x): Point => [x, of.loss(x)]),
    };
  }

  /** A piece of a tangent at θ, as long as others in the picture. */
  function tangent(slope: number, chart: Chart): Point[] {
    const { theta } = state.values, perUnit = (chart.y(0) - chart.y(1)) / (chart.x(1) - chart.x(0));
    const width = TANGENT / Math.hypot(1, slope * perUnit);
    return [-1, 1].map((side): Point => [theta + side * width, found.loss + side * width * slope]);
  }

  function show(): void {
    const [maml, fomaml] = found.slopes, { product } = found.rows.at(-1)!;
    slopes.show([
      { name: "MAML", className: "one", cells: [shown(maml)] },
      { name: "FOMAML", className: "two", cells: [shown(fomaml)] },
    ]);
    table.show(found.rows.map(({ phi, curvature, factor, product }, step) => {
      const isLast = step === found.rows.length - 1;
      return { name: `${step}`, cells: [shown(phi), isLast ? "" : shown(curvature), isLast ? "" : shown(factor), shown(product)] };
    }));
    tell(unstable(state.values.rate, state.values.stiffness));
    said.textContent =
      maml === 0 || fomaml === 0 ? "One of the slopes is 0: θ is at a turning point of the curve, or its steps end at the minimum."
      : product < 0 ? `FOMAML points uphill here: the steps end where the task's slope is ${shown(fomaml)}, but moving θ by a little moves their end by ${shown(product)} times that, to the other side.`
      : `FOMAML points downhill here, as MAML does, and takes the slope for ${shown(fomaml / maml)} times what it is: it takes dφ/dθ for 1, and it is ${shown(product)}.`;
    const top = (curve: Point[]) => 1.05 * Math.max(0.1, ...curve.map(([, y]) => y));
    meta.domain(LINE, [-0.12 * top(found.curve), top(found.curve)]);
    task.domain(LINE, [0, top(found.taskCurve)]);
  }

  for (const { svg, at } of [meta, task].map((chart) => ({ svg: chart.svg, at: (event: PointerEvent) => chart.at(event)[0] }))) {
    const put = (x: number) => state.set({ theta: Number(Math.min(LINE[1], Math.max(LINE[0], x)).toFixed(2)) });
    svg.classList.add("slides");
    svg.addEventListener("pointerdown", (event) => {
      svg.setPointerCapture(event.pointerId);
      put(at(event));
    });
    svg.addEventListener("pointermove", (event) => svg.hasPointerCapture(event.pointerId) && put(at(event)));
    svg.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!way) return;
      event.preventDefault();
      put(state.values.theta + way * (event.shiftKey ? 0.01 : 0.1));
    });
  }

  show();
  state.watch(() => {
    found = solve();
    show();
  });

  return {
    numbers: () => ({
      "meta-loss": found.loss, "MAML's slope": found.slopes[0], "FOMAML's slope": found.slopes[1],
      ...Object.fromEntries(found.rows.flatMap(({ phi, curvature, product }, i) => [[`phi ${i}`, phi], [`curvature ${i}`, curvature], [`dphi/dtheta ${i}`, product]])),
    }),
    python: () => program(state.values),
    close: () => [meta, task].forEach((chart) => chart.close()),
  };
}

function program({ theta, stiffness, rate, steps }: Values): string {
  return `"""Curvature: what the playground shows, by lightning_maml."""

import json

import torch
from torch import nn

import lightning_maml as lm

torch.set_default_dtype(torch.float64)


class Offset(nn.Module):
    """One parameter; its output is how far it is from the task's centre."""

    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([theta]))

    def forward(self, inputs):  # [rows, 1]: a centre
        return self.theta - inputs


def loss(predictions, targets):
    """Nearly quadratic near 0, of curvature ${stiffness}, and flatter far away."""
    return (${WIDTH} * torch.log1p(${stiffness} * predictions**2 / ${2 * WIDTH})).mean()


def end(predictions, targets):
    """Where the steps end, as if it were a loss: its gradient is dphi/dtheta."""
    return predictions.mean()


centre = torch.zeros(1, 1, 1)  # one task, one row
tasks = lm.TaskBatch(centre, centre, centre, centre)


def slope(algorithm, query_loss=None):
    network = Offset(${float(theta)})
    output = lm.meta_loss(network, algorithm, tasks, loss=loss, query_loss=query_loss)
    output.surrogate.backward()
    return output.task_losses.item(), network.theta.grad.item()


rate, steps = ${rate}, ${steps}
numbers = {}
numbers["meta-loss"], numbers["MAML's slope"] = slope(lm.maml(rate, steps))
numbers["FOMAML's slope"] = slope(lm.fomaml(rate, steps))[1]
for step in range(steps + 1):
    phi, numbers[f"dphi/dtheta {step}"] = slope(lm.maml(rate, step), query_loss=end)
    numbers[f"phi {step}"] = phi
    at = torch.tensor(phi, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(at, None), at, create_graph=True)
    numbers[f"curvature {step}"] = torch.autograd.grad(gradient, at)[0].item()
print(json.dumps(numbers))
`;
}

export const curvature: Page<typeof schema> = {
  name: "curvature",
  title: "Curvature",
  about:
    "MAML's gradient is the task's slope at the end of the inner steps times dφ/dθ, how far that end moves when θ does; FOMAML leaves that factor out. " +
    "Move θ, the stiffness and the inner rate: where steps overshoot, the two slopes part, and FOMAML may point uphill.",
  schema,
  open,
};
