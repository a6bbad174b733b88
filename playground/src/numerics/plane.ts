/** Tasks with two parameters, whose losses, gradients and Hessians have a closed form, and the algorithms' meta-gradients. */

export type Vector = readonly [number, number];
/** A symmetric matrix: xx, xy, yy. */
export type Symmetric = readonly [number, number, number];

/** How far a bowl is as good as quadratic: the loss is `WIDTH log(1 + q / WIDTH)` of the quadratic form q. */
export const WIDTH = 2;
export const STIFFNESS = 6;
/** Degrees from the x axis to the stiff direction of the first task, the second, ... */
export const ANGLES = [25, 85, 145, 115] as const;

/** One task: a bowl around its centre, as flat as 1 in one direction and as steep as `stiffness` across. */
export class Bowl {
  private readonly a: Symmetric;

  constructor(readonly centre: Vector, readonly angle: number, readonly stiffness = STIFFNESS) {
    const [c, s] = [Math.cos((angle * Math.PI) / 180), Math.sin((angle * Math.PI) / 180)];
    this.a = [stiffness * c * c + s * s, (stiffness - 1) * c * s, stiffness * s * s + c * c];
  }

  loss([x, y]: Vector): number {
    const [a, b, c] = this.a, dx = x - this.centre[0], dy = y - this.centre[1];
    return WIDTH * Math.log1p((a * dx * dx + 2 * b * dx * dy + c * dy * dy) / (2 * WIDTH));
  }

  gradient([x, y]: Vector): Vector {
    const [a, b, c] = this.a, dx = x - this.centre[0], dy = y - this.centre[1], gx = a * dx + b * dy, gy = b * dx + c * dy;
    const flatter = 1 + (dx * gx + dy * gy) / (2 * WIDTH);
    return [gx / flatter, gy / flatter];
  }

  /** Of positive curvature near the centre, of negative curvature along the gradient far away. */
  hessian([x, y]: Vector): Symmetric {
    const [a, b, c] = this.a, dx = x - this.centre[0], dy = y - this.centre[1], gx = a * dx + b * dy, gy = b * dx + c * dy;
    const flatter = 1 + (dx * gx + dy * gy) / (2 * WIDTH), less = WIDTH * flatter * flatter;
    return [a / flatter - (gx * gx) / less, b / flatter - (gx * gy) / less, c / flatter - (gy * gy) / less];
  }
}

/** The tasks of a page: where their centres are is the reader's, how they are turned is not. */
export const bowls = (centres: readonly Vector[]): Bowl[] => centres.map((centre, task) => new Bowl(centre, ANGLES[task]!));

/** Gradient descent on one task. */
export interface Inner {
  steps: number;
  rate: number;
  /** What of x and of y moves: [0, 1] is ANIL, whose head is y. */
  moves?: Vector;
  /** lambda of `lambda / 2 |phi - theta|^2`, which iMAML adds to the loss */
  pull?: number;
}

/** What all algorithms need together: inner steps, and iMAML's lambda. */
export interface Adaptation {
  steps: number;
  rate: number;
  proximal: number;
}

/** Where the inner steps lead, `[steps + 1]`. */
export function innerPath(task: Bowl, theta: Vector, { steps, rate, moves = [1, 1], pull = 0 }: Inner): Vector[] {
  const path = [theta];
  for (let step = 0, [x, y] = theta; step < steps; step++) {
    const [gx, gy] = task.gradient([x, y]);
    x -= rate * moves[0] * (gx + pull * (x - theta[0]));
    y -= rate * moves[1] * (gy + pull * (y - theta[1]));
    path.push([x, y]);
  }
  return path;
}

export function metaLoss(tasks: readonly Bowl[], theta: Vector, { steps, rate }: Inner): number {
  let sum = 0;
  for (const task of tasks) {
    let at = theta;
    for (let step = 0; step < steps; step++) {
      const [gx, gy] = task.gradient(at);
      at = [at[0] - rate * gx, at[1] - rate * gy];
    }
    sum += task.loss(at);
  }
  return sum / tasks.length;
}

/** The gradient at the end of the inner steps, brought back to theta: times `I - rate H` of each step, the last one first. */
function backwards(task: Bowl, theta: Vector, inner: Inner): Vector {
  const path = innerPath(task, theta, inner), [mx, my] = inner.moves ?? [1, 1];
  let [x, y] = task.gradient(path.pop()!);
  for (const at of path.reverse()) {
    const [a, b, c] = task.hessian(at), vx = inner.rate * mx * x, vy = inner.rate * my * y;
    x -= a * vx + b * vy;
    y -= b * vx + c * vy;
  }
  return [x, y];
}

/** iMAML's inner loop comes to its optimum at a rate of its own, whatever the curvature. */
export const proximalInner = ({ proximal }: Adaptation): Inner => ({ steps: 60, rate: 1 / (proximal + STIFFNESS), pull: proximal });

/** What each algorithm moves theta against, of one task. */
export const RULES = {
  maml: backwards,
  fomaml: (task, theta, inner) => task.gradient(innerPath(task, theta, inner).at(-1)!),
  reptile: (task, theta, inner) => {
    const [x, y] = innerPath(task, theta, inner).at(-1)!;
    return [theta[0] - x, theta[1] - y];
  },
  imaml: (task, theta, settings) => {
    const phi = innerPath(task, theta, proximalInner(settings)).at(-1)!, [gx, gy] = task.gradient(phi);
    const [a, b, c] = task.hessian(phi).map((one, i) => one / settings.proximal + (i === 1 ? 0 : 1)) as [number, number, number];
    const determinant = a * c - b * b;
    return [(c * gx - b * gy) / determinant, (a * gy - b * gx) / determinant];
  },
  anil: (task, theta, inner) => backwards(task, theta, { ...inner, moves: [0, 1] }),
  pretrained: (task, theta) => task.gradient(theta),
} satisfies Record<string, (task: Bowl, theta: Vector, settings: Adaptation) => Vector>;

export type RuleName = keyof typeof RULES;

/** The mean over tasks of what an algorithm moves theta against. */
export function direction(rule: RuleName, tasks: readonly Bowl[], theta: Vector, settings: Adaptation): Vector {
  const each = tasks.map((task) => RULES[rule](task, theta, settings));
  return [0, 1].map((i) => each.reduce((sum, one) => sum + one[i]!, 0) / tasks.length) as unknown as Vector;
}

/** Outer steps against an algorithm's direction, which is shortened to 1 where it is longer, as torch's `clip_grad_norm_` does. */
export function follow(rule: RuleName, tasks: readonly Bowl[], from: Vector, settings: Adaptation, outer: { rate: number; steps: number }): Vector[] {
  const path: Vector[] = [from];
  for (let step = 0, [x, y] = from; step < outer.steps; step++) {
    const [gx, gy] = direction(rule, tasks, [x, y], settings), rate = outer.rate * Math.min(1, 1 / (Math.hypot(gx, gy) + 1e-6));
    x -= rate * gx;
    y -= rate * gy;
    path.push([x, y]);
  }
  return path;
}

/** Gradient descent on the meta-loss: a quarter of the rate where that does not fall, twice the rate where it does. */
export function descend(tasks: readonly Bowl[], from: Vector, inner: Inner): Vector[] {
  const path: Vector[] = [from], settings = { ...inner, proximal: 1 }; // which MAML does not look at
  let rate = 1, loss = metaLoss(tasks, from, inner), gradient = direction("maml", tasks, from, settings);
  for (let trial = 0; trial < 300 && Math.hypot(...gradient) > 1e-6; trial++) {
    const [x, y] = path.at(-1)!, next: Vector = [x - rate * gradient[0], y - rate * gradient[1]], found = metaLoss(tasks, next, inner);
    if (!(found < loss)) {
      rate /= 4;
      continue;
    }
    path.push(next);
    [rate, loss, gradient] = [2 * rate, found, direction("maml", tasks, next, settings)];
  }
  return path;
}

/** A function at the middle of each cell, rows from low y to high. */
export function grid(f: (at: Vector) => number, x: Vector, y: Vector, columns: number, rows: number): Float64Array {
  const along = ([low, high]: Vector, i: number, many: number) => low + ((i + 0.5) / many) * (high - low);
  return Float64Array.from({ length: columns * rows }, (_, i) => f([along(x, i % columns, columns), along(y, Math.floor(i / columns), rows)]));
}
