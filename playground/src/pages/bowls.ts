/** What the pages have in common whose tasks are bowls in the plane. */

import { ANGLES, STIFFNESS, WIDTH } from "../numerics/plane";
import type { Frame } from "../page";
import { number, points, whole, type Point, type State } from "../state";
import { button } from "../views/controls";
import { X, Y, type Handle } from "../views/plane";

export const CLASSES = ["one", "two", "three", "four"] as const;

export const schema = {
  steps: whole(5, 0, 20),
  rate: number(0.2, 0.01, 0.5),
  tasks: points<Point[]>([[-3, -1.5], [3, -1], [0.5, 2.2]], X, Y, ANGLES.length, 2),
  theta: points<Point[]>([[-3.5, 2]], X, Y, 1, 1),
};

type Values = State<typeof schema>["values"];

/** `classes`: whether each task has its colour. */
export function handles({ tasks, theta }: Values, classes: boolean): Handle[] {
  const all = tasks.map((at, i): Handle => ({ name: `${i}`, text: `${i + 1}`, label: `Task ${i + 1}`, className: classes ? CLASSES[i]! : "", at }));
  return [...all, { name: "theta", text: "θ", label: "θ", className: "", at: theta[0]! }];
}

export function move<S extends typeof schema>(state: State<S>, name: string, to: Point): void {
  if (name === "theta") state.set({ theta: [to] } as never);
  else state.set({ tasks: (state.values.tasks as Point[]).map((at, i) => (`${i}` === name ? to : at)) } as never);
}

/** Buttons for more tasks and for fewer. */
export function count<S extends typeof schema>(parent: HTMLElement, state: State<S>): void {
  const tasks = () => state.values.tasks as Point[], added: Point[] = [[-1, -2.2], [1.5, -2.2]];
  const more = button(parent, "Add a task", () => state.set({ tasks: [...tasks(), added[tasks().length % 2]!] } as never));
  const fewer = button(parent, "Remove a task", () => state.set({ tasks: tasks().slice(0, -1) } as never));
  const allow = () => {
    more.disabled = tasks().length >= ANGLES.length;
    fewer.disabled = tasks().length <= 2;
  };
  allow();
  state.watch(allow);
}

export const HINT = "Drag the tasks and θ. With the keyboard: Tab chooses one, the arrows move it, with Shift in small steps.";

/** Says a sentence where the numbers ask for it, and takes it back where they no longer do. */
export function telling(frame: Frame): (...sentences: string[]) => void {
  let told = "";
  return (...sentences) => {
    const text = sentences.filter(Boolean).join(" ");
    if (text !== told) frame.notice(text);
    told = text;
  };
}

/** Of gradient descent near a minimum. */
export const unstable = (rate: number, stiffness = STIFFNESS): string =>
  rate * stiffness > 2 ? `The inner rate times the stiffness is ${Number((rate * stiffness).toFixed(2))}, above 2: inner steps do not come to rest at a task's centre, they jump about it.` : "";

/** The beginning of a program: tasks, and a network whose outputs are their losses. */
export function prelude(title: string, { tasks }: Values, parameters: string, theta: string): string {
  return `"""${title}: what the playground shows, by lightning_maml."""

import json

import torch
from torch import nn

import lightning_maml as lm

torch.set_default_dtype(torch.float64)
centres = torch.tensor(${list(tasks)}, dtype=torch.float64)
angles = torch.tensor(${list(ANGLES.slice(0, tasks.length))}, dtype=torch.float64).deg2rad()


class Bowl(nn.Module):
    """Two parameters; its output is the loss of a task: a bowl around the centre, stiff along one direction."""

    def __init__(self, x, y):
        super().__init__()
${parameters}

    def forward(self, inputs):  # [rows, 3]: a centre and an angle
        offset, angle = ${theta} - inputs[:, :2], inputs[:, 2]
        across = offset[:, 0] * angle.cos() + offset[:, 1] * angle.sin()
        along = offset[:, 1] * angle.cos() - offset[:, 0] * angle.sin()
        return ${WIDTH} * torch.log1p((${STIFFNESS} * across**2 + along**2) / ${2 * WIDTH})


def loss(predictions, targets):
    return predictions.mean()


inputs = torch.cat([centres, angles[:, None]], 1)[:, None]  # [tasks, 1 row, 3]
none = torch.zeros(len(centres), 1)  # the loss needs no targets
tasks = lm.TaskBatch(inputs, none, inputs, none)  # each task is judged by the rows it adapts to
`;
}

/** A number as Python writes a float. */
export const float = (value: number): string => (Number.isInteger(value) ? `${value}.0` : `${value}`);

const list = (values: unknown): string => JSON.stringify(values).replaceAll(",", ", ");
