/** Directions: where each algorithm would move θ, and where it ends up. */

import { STIFFNESS, bowls, direction, follow, metaLoss, proximalInner, type RuleName, type Vector } from "../numerics/plane";
import { element, type Frame, type Opened, type Page } from "../page";
import { choice, number, type Point, type State } from "../state";
import type { Chart } from "../views/chart";
import { Table, select, shown, slider } from "../views/controls";
import { Plane, star } from "../views/plane";
import * as common from "./bowls";

const COMPARED: { name: RuleName; title: string; className: string }[] = [
  { name: "maml", title: "MAML", className: "one" },
  { name: "fomaml", title: "FOMAML", className: "two" },
  { name: "reptile", title: "Reptile", className: "three" },
  { name: "imaml", title: "iMAML", className: "four" },
  { name: "anil", title: "ANIL", className: "five" },
  { name: "pretrained", title: "pretrained", className: "six" },
];
const OUTER_STEPS = 100;
const LENGTH = 1.2; // of a normalised arrow, in units of the plane

const schema = {
  ...common.schema,
  proximal: number(2, 2, 10, 1),
  length: choice("normalised", ["normalised", "true"]),
  outer: number(0.3, 0.01, 0.5),
};
type Values = State<typeof schema>["values"];

function open(frame: Frame, state: State<typeof schema>): Opened {
  const tell = common.telling(frame);
  let found = solve();

  const plane = new Plane(
    frame.figures,
    { label: "The direction of each algorithm at θ, and its way from there, over contours of the meta-loss", xLabel: "θ₁ (ANIL's body)", yLabel: "θ₂ (ANIL's head)" },
    () => ({
      height: (at) => metaLoss(found.tasks, at, state.values),
      key: JSON.stringify([state.values.tasks, state.values.steps, state.values.rate]),
      handles: common.handles(state.values, false),
    }),
    (chart) => {
      for (const { className, path } of found.rules) chart.line(`way-${className}`, path, `${className} faint`);
      // MAML last, above the others
      for (const { className, against, path } of [...found.rules].reverse()) {
        arrow(chart, className, state.values.theta[0]!, against, state.values.length === "true");
        star(chart, className, path.at(-1)!, className);
      }
    },
    (name, to) => common.move(state, name, to),
  );
  const legend = element("p", { class: "legend" });
  for (const { title, className } of COMPARED) legend.append(element("span", { class: className }, title), " ");
  frame.figures.append(legend, element("p", { class: "legend" }, `Arrows: where θ would go. Faint: ${OUTER_STEPS} outer steps, ending at a ★. Greyer: a higher meta-loss.`));

  const table = new Table(frame.controls, "Meta-loss where each ends", ["angle", "slope", "at its ★"]);
  frame.controls.append(element("p", { class: "hint" }, "Angle: between its arrow and MAML's. Slope: of the meta-loss along an arrow; above 0 it points uphill. All are judged alike, by the mean loss after the inner steps on both parameters; in its own inner steps ANIL moves θ₂ alone."));
  slider(frame.controls, state, "steps", "Inner steps", [0, 20, 1]);
  slider(frame.controls, state, "rate", "Inner rate", [0.01, 0.5, 0.01]);
  slider(frame.controls, state, "proximal", "iMAML's λ", [2, 10, 0.1]);
  slider(frame.controls, state, "outer", "Outer rate", [0.01, 0.5, 0.01]);
  select(frame.controls, state, "length", "Arrows", { normalised: "of one length", true: "as long as they are" });
  common.count(frame.controls, state);
  frame.controls.append(element("p", { class: "hint" }, common.HINT));

  function solve() {
    const { values } = state, tasks = bowls(values.tasks), theta = values.theta[0]!;
    const maml = direction("maml", tasks, theta, values);
    const rules = COMPARED.map(({ name, title, className }) => {
      const against = direction(name, tasks, theta, values), length = Math.hypot(...against);
      const path = follow(name, tasks, theta, values, { rate: values.outer, steps: OUTER_STEPS });
      const inner = against[0] * maml[0] + against[1] * maml[1];
      const angle = Math.atan2(maml[0] * against[1] - maml[1] * against[0], inner) * (180 / Math.PI);
      return { name, title, className, against, path, angle, slope: length && -inner / length, loss: metaLoss(tasks, path.at(-1)!, values) };
    });
    return { tasks, rules };
  }

  function show(): void {
    table.show(found.rules.map(({ title, className, against, angle, slope, loss }) => {
      const still = Math.hypot(...against) === 0;
      return { name: title, className, cells: [still ? "stays" : `${Math.abs(angle).toFixed(0)}°`, still ? "" : shown(slope), shown(loss)] };
    }));
    const up = found.rules.filter(({ slope }) => slope > 0).map(({ title }) => title);
    tell(up.length ? `At this θ uphill on the meta-loss: ${up.join(", ")}.` : "", common.unstable(state.values.rate));
  }

  show();
  state.watch((changed) => {
    if (changed.size > 1 || !changed.has("length")) found = solve();
    show();
    plane.draw();
  });

  return {
    numbers: () => Object.fromEntries(found.rules.flatMap(({ name, against: [x, y], slope, loss }) => [[`${name} x`, x], [`${name} y`, y], [`${name} slope`, slope], [`${name} end`, loss]])),
    python: () => program(state.values),
    close: () => plane.close(),
  };
}

/** An arrow from θ against a gradient. */
function arrow(chart: Chart, className: string, [x, y]: Point, [gx, gy]: Vector, isTrue: boolean): void {
  const scale = isTrue ? 1 : LENGTH / Math.hypot(gx, gy), ends: Point[] = Number.isFinite(scale) ? [[x, y], [x - scale * gx, y - scale * gy]] : [];
  chart.line(`arrow-${className}`, ends, className);
  const [from, to] = ends.map(([a, b]) => [chart.x(a), chart.y(b)] as const);
  const tip = chart.named("path", `tip-${className}`).attr("class", `star ${className}`);
  if (!from || !to || Math.hypot(to[0] - from[0], to[1] - from[1]) < 1) tip.attr("d", null);
  else tip.attr("d", "M6,0L-5,5L-5,-5Z").attr("transform", `translate(${to[0]} ${to[1]}) rotate(${(Math.atan2(to[1] - from[1], to[0] - from[0]) * 180) / Math.PI})`);
}

function program(values: Values): string {
  const { steps, rate, proximal, outer, theta } = values, [x, y] = theta[0]!;
  const parameters = "        self.body, self.head = nn.Parameter(torch.tensor([x])), nn.Parameter(torch.tensor([y]))";
  return `${common.prelude("Directions", values, parameters, "torch.cat([self.body, self.head])")}
rate, steps, proximal = ${rate}, ${steps}, ${common.float(proximal)}
algorithms = {
    "maml": lm.maml(rate, steps),
    "fomaml": lm.fomaml(rate, steps),
    "reptile": lm.reptile(rate, steps, optimizer="sgd"),
    # its inner loop needs to come close to the optimum of the loss with the proximal term
    "imaml": lm.imaml(1 / (proximal + ${STIFFNESS}), steps=${proximalInner(values).steps}, proximal=proximal, cg_steps=2, damping=0.0),
    "anil": lm.anil(rate, steps, head="head"),
    "pretrained": lm.pretrained(rate, steps),
}


def direction(network, algorithm):
    network.zero_grad()
    lm.meta_loss(network, algorithm, tasks, loss=loss).surrogate.backward()
    return torch.cat([network.body.grad, network.head.grad])


numbers = {}
for name, algorithm in algorithms.items():
    network = Bowl(${common.float(x)}, ${common.float(y)})
    uphill, against = direction(network, algorithms["maml"]), direction(network, algorithm)
    numbers[f"{name} x"], numbers[f"{name} y"] = against.tolist()
    numbers[f"{name} slope"] = -(uphill @ against / against.norm()).nan_to_num().item()
    optimizer = torch.optim.SGD(network.parameters(), lr=${outer})
    for _ in range(${OUTER_STEPS}):
        direction(network, algorithm)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    # all are judged alike, whatever they train by
    judged = lm.adapt(network, algorithms["maml"], inputs, none, loss=loss)
    numbers[f"{name} end"] = judged.support_losses[:, -1].mean().item()
print(json.dumps(numbers))
`;
}

export const directions: Page<typeof schema> = {
  name: "directions",
  title: "Directions",
  about:
    "Six algorithms look at the same tasks from the same θ, and each would move it another way: follow their arrows to where they end. " +
    "At 0 inner steps most agree; with more steps, a higher inner rate or another θ they part.",
  schema,
  open,
};
