/** Loss landscapes: what a few inner steps make of the loss, over all places where they might begin. */

import { bowls, descend, innerPath, metaLoss, type Vector } from "../numerics/plane";
import { element, type Frame, type Opened, type Page } from "../page";
import type { State } from "../state";
import { Table, shown, slider } from "../views/controls";
import { Plane, star } from "../views/plane";
import { CLASSES, HINT, count, float, handles, move, prelude, schema, telling, unstable } from "./bowls";

function open(frame: Frame, state: State<typeof schema>): Opened {
  const tell = telling(frame);
  let found = solve();

  const plane = new Plane(
    frame.figures,
    { label: "Contours of the loss after the inner steps, over where they begin; the tasks, θ, and the steps from it", xLabel: "θ₁", yLabel: "θ₂" },
    () => ({
      height: (at) => metaLoss(found.tasks, at, state.values),
      key: JSON.stringify([state.values.tasks, state.values.steps, state.values.rate]),
      handles: handles(state.values, true),
    }),
    (chart) => {
      chart.line("descent", found.descent, "wave");
      for (const [i, name] of CLASSES.entries()) {
        chart.line(`path-${name}`, found.paths[i] ?? [], `${name} thin`);
        chart.dots(`steps-${name}`, found.paths[i]?.slice(1) ?? [], name, 3.5);
      }
      chart.dots("mean", [centre()], "cursor", 6);
      star(chart, "minimum", found.descent.at(-1)!, "ink");
    },
    (name, to) => move(state, name, to),
  );
  frame.figures.append(element("p", { class: "legend" }, "Greyer: a higher loss after the inner steps. ★ the minimum, found by gradient descent from θ (dashed). ○ the mean of the tasks' centres. Coloured: the inner steps from θ."));

  const table = new Table(frame.controls, "Loss", ["before the steps", "after them"]);
  const where = element("p", { class: "hint" });
  frame.controls.append(where);
  slider(frame.controls, state, "steps", "Inner steps", [0, 20, 1]);
  slider(frame.controls, state, "rate", "Inner rate", [0.01, 0.5, 0.01]);
  count(frame.controls, state);
  frame.controls.append(element("p", { class: "hint" }, HINT));

  function solve() {
    const { values } = state, tasks = bowls(values.tasks), theta = values.theta[0]!, descent = descend(tasks, theta, values);
    const both = (at: Vector) => [metaLoss(tasks, at, { ...values, steps: 0 }), metaLoss(tasks, at, values)] as const;
    const paths = tasks.map((task) => innerPath(task, theta, values));
    return { tasks, descent, paths, here: both(theta), there: both(descent.at(-1)!) };
  }

  function centre(): Vector {
    const { tasks } = state.values, sum = (i: 0 | 1) => tasks.reduce((sum, at) => sum + at[i], 0);
    return [sum(0) / tasks.length, sum(1) / tasks.length];
  }

  function show(): void {
    const { tasks, paths, here, there, descent } = found, [x, y] = descent.at(-1)!;
    table.show([
      ...tasks.map((task, i) => ({ name: `task ${i + 1}, from θ`, className: CLASSES[i]!, cells: [task.loss(paths[i]![0]!), task.loss(paths[i]!.at(-1)!)].map(shown) })),
      { name: "mean, from θ", cells: here.map(shown) },
      { name: "mean, from ★", cells: there.map(shown) },
    ]);
    tell(unstable(state.values.rate));
    where.textContent = `★ is at ${shown(x)}, ${shown(y)}; the mean of the centres at ${centre().map(shown).join(", ")}.`;
  }

  show();
  state.watch(() => {
    found = solve();
    show();
    plane.draw();
  });

  return {
    numbers: () => ({
      ...Object.fromEntries(found.tasks.flatMap((task, i) => {
        const path = found.paths[i]!;
        return [[`task ${i + 1} before`, task.loss(path[0]!)], [`task ${i + 1} after`, task.loss(path.at(-1)!)]];
      })),
      "mean before": found.here[0], "mean after": found.here[1],
      "mean before at the minimum": found.there[0], "mean after at the minimum": found.there[1],
      "minimum x": found.descent.at(-1)![0], "minimum y": found.descent.at(-1)![1],
    }),
    python: () => program(state.values),
    close: () => plane.close(),
  };
}

function program(values: State<typeof schema>["values"]): string {
  const { steps, rate, theta: [[x, y]] } = values as typeof values & { theta: [Vector] };
  return `${prelude("Loss landscapes", values, "        self.theta = nn.Parameter(torch.tensor([x, y]))", "self.theta")}
algorithm = lm.maml(lr=${rate}, steps=${steps})
network = Bowl(${float(x)}, ${float(y)})
numbers = {}

adapted = lm.adapt(network, algorithm, inputs, none, loss=loss)
for task, losses in enumerate(adapted.support_losses, 1):
    numbers[f"task {task} before"], numbers[f"task {task} after"] = losses[0].item(), losses[-1].item()
before, after = adapted.support_losses.mean(0)[[0, -1]].tolist()
numbers |= {"mean before": before, "mean after": after}


def meta_gradient(theta):
    network.theta.data, network.theta.grad = theta, None
    output = lm.meta_loss(network, algorithm, tasks, loss=loss)
    output.surrogate.backward()
    return output.task_losses.mean().item(), network.theta.grad


# gradient descent on the meta-loss: a quarter of the rate where that does not fall, twice the rate where it does
here, rate = network.theta.detach().clone(), 1.0
least, gradient = meta_gradient(here)
for _ in range(300):
    if gradient.norm() <= 1e-6:
        break
    there = here - rate * gradient
    found, gradient_there = meta_gradient(there)
    if found < least:
        here, least, gradient, rate = there, found, gradient_there, 2 * rate
    else:
        rate /= 4

network.theta.data = here
before, after = lm.adapt(network, algorithm, inputs, none, loss=loss).support_losses.mean(0)[[0, -1]].tolist()
numbers |= {"mean before at the minimum": before, "mean after at the minimum": after}
numbers |= {"minimum x": here[0].item(), "minimum y": here[1].item()}
print(json.dumps(numbers))
`;
}

export const landscape: Page<typeof schema> = {
  name: "landscape",
  title: "Loss landscapes",
  about:
    "Each task is a bowl in the plane of two parameters, and the picture is the mean loss of all tasks after inner steps from each place. " +
    "Move the inner steps from 0 up: the best place to begin leaves the place that is best without adaptation.",
  schema,
  open,
};
