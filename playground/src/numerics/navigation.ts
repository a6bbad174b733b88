/**
 * A point that is to find a goal it cannot see, and policy-gradient steps on its ways there: as `Navigation2D`,
 * `Advantages` and the inner loop of `lightning_maml.rl`, in double precision.
 */

import built from "../built/navigation.json";
import { Policy } from "./policy";
import type { Random } from "./random";

export const { horizon: HORIZON, spread: SPREAD, widths: WIDTHS, rates: RATES, seed: UNTRAINED_SEED } = built;
export const MOST_TRAJECTORIES = 40;
const FEATURES = 8;

/** What all tasks begin from: the policy that ships with the package, and one as it is drawn, without training. */
export const POLICIES = { trained: decoded(built.trained), untrained: decoded(built.untrained) };

export interface Trajectory {
  /** `[steps + 1]` of each: the first place is (0, 0). */
  x: number[];
  y: number[];
  /** `[steps, 2]`: what the actions were off their means, in deviations. */
  noise: number[];
  /** `[steps]`: minus the distance to the goal, after the move. */
  rewards: number[];
}

/** What a policy does from (0, 0), until it is at the goal or the horizon; `noise(t)` is of 2 normal numbers. */
export function trajectory(policy: Policy, [goalX, goalY]: readonly [number, number], noise: (time: number) => readonly [number, number]): Trajectory {
  const way: Trajectory = { x: [0], y: [0], noise: [], rewards: [] }, [stdX, stdY] = policy.std;
  const move = (action: number) => 0.1 * Math.min(1, Math.max(-1, action));
  for (let time = 0, x = 0, y = 0; time < HORIZON; time++) {
    const mean = policy.mean([x, y]), [u, v] = noise(time);
    x += move(mean[0]! + stdX! * u);
    y += move(mean[1]! + stdY! * v);
    way.x.push(x);
    way.y.push(y);
    way.noise.push(u, v);
    way.rewards.push(-Math.hypot(x - goalX, y - goalY));
    if (Math.abs(x - goalX) < 0.01 && Math.abs(y - goalY) < 0.01) break;
  }
  return way;
}

/** So many trajectories of a policy before inner step `step`; their noise is the same for every policy and goal. */
export function rollout(policy: Policy, goal: readonly [number, number], random: Random, step: number, count: number): Trajectory[] {
  return Array.from({ length: count }, (_, i) => {
    const begin = (step * MOST_TRAJECTORIES + i) * HORIZON * 2;
    return trajectory(policy, goal, (time) => [random.normal(begin + 2 * time), random.normal(begin + 2 * time + 1)]);
  });
}

/** The mean return, without discount. */
export function meanReturn(ways: Trajectory[]): number {
  let sum = 0;
  for (const { rewards } of ways) for (const reward of rewards) sum += reward;
  return sum / ways.length;
}

/** How much better actions were than what a fit expects of their places and times, normalised: `[trajectories][steps]`. */
export function advantages(ways: Trajectory[]): number[][] {
  const returns = ways.map(({ rewards }) => discounted(rewards)), weights = baseline(ways, returns);
  const all = ways.map((way) => {
    const values = way.rewards.map((_, time) => dot(weights, features(way, time)));
    return discounted(way.rewards.map((reward, time) => reward + built.discount * (values[time + 1] ?? 0) - values[time]!));
  });
  const flat = all.flat(), mean = flat.reduce((sum, one) => sum + one, 0) / flat.length;
  const deviation = Math.sqrt(flat.reduce((sum, one) => sum + (one - mean) ** 2, 0) / flat.length) + 1e-8;
  return all.map((row) => row.map((one) => (one - mean) / deviation));
}

/** The policy after an inner step: `lvc`'s gradient, which at the policy that sampled is that of the log-probabilities. */
export function innerStep(policy: Policy, ways: Trajectory[], rate: number): Policy {
  const credit = advantages(ways), gradient = new Float64Array(policy.theta.length), slope = new Float64Array(2);
  const deviations = gradient.length - 2, share = 1 / (ways.length * HORIZON); // the mean over all steps there could have been
  for (const [i, { x, y, noise, rewards }] of ways.entries()) {
    for (let time = 0; time < rewards.length; time++) {
      const weight = -credit[i]![time]! * share;
      policy.mean([x[time]!, y[time]!]);
      for (let action = 0; action < 2; action++) {
        const off = noise[2 * time + action]!;
        slope[action] = (weight * off) / policy.std[action]!;
        gradient[deviations + action]! += weight * (off * off - 1);
      }
      policy.back(slope, gradient);
    }
  }
  return new Policy(policy.widths, policy.theta.map((value, i) => value - rate * gradient[i]!));
}

/** Ways of a policy before and after each inner step, taken when they are asked for; a step sees the ways before it. */
export class PolicyAdaptation {
  private readonly path: { policy: Policy; ways: Trajectory[] }[] = [];

  constructor(
    private readonly theta: Float64Array, private readonly goal: readonly [number, number], private readonly random: Random,
    private readonly count: number, private readonly rates: number[],
  ) {}

  /** How many inner steps have been taken, with their ways; -1 before the first ways. */
  get reached(): number {
    return this.path.length - 1;
  }

  after(step: number): { policy: Policy; ways: Trajectory[] } {
    for (let next = this.path.length; next <= step; next++) {
      const last = this.path.at(-1), policy = last ? innerStep(last.policy, last.ways, this.rates[next - 1]!) : new Policy(WIDTHS, this.theta);
      this.path.push({ policy, ways: rollout(policy, this.goal, this.random, next, this.count) });
    }
    return this.path[step]!;
  }
}

function discounted(rewards: number[]): number[] {
  const sums = rewards.slice();
  for (let time = sums.length - 2; time >= 0; time--) sums[time]! += built.discount * sums[time + 1]!;
  return sums;
}

/** Duan et al. 2016: place, its square, time, its square and cube, and 1. */
function features({ x, y }: Trajectory, time: number): number[] {
  const within = (value: number) => Math.min(10, Math.max(-10, value)), a = within(x[time]!), b = within(y[time]!), t = time / 100;
  return [a, b, a * a, b * b, t, t * t, t ** 3, 1];
}

/** Weights of the features that fit the returns by least squares, with a ridge. */
function baseline(ways: Trajectory[], returns: number[][]): number[] {
  const rows = Array.from({ length: FEATURES }, (_, i) => Array.from({ length: FEATURES + 1 }, (_, j) => (i === j ? 1e-5 : 0)));
  for (const [i, way] of ways.entries()) {
    for (const [time, target] of returns[i]!.entries()) {
      const seen = [...features(way, time), target];
      for (const [a, row] of rows.entries()) for (let b = 0; b <= FEATURES; b++) row[b]! += seen[a]! * seen[b]!;
    }
  }
  return solved(rows);
}

/** Gauss and Jordan's: `rows` are of a matrix that is positive definite, and the right side behind them. */
function solved(rows: number[][]): number[] {
  for (const [i, pivot] of rows.entries()) {
    for (const [j, row] of rows.entries()) {
      const factor = row[i]! / pivot[i]!;
      if (j !== i) for (let k = i; k < row.length; k++) row[k]! -= factor * pivot[k]!;
    }
  }
  return rows.map((row, i) => row.at(-1)! / row[i]!);
}

/** Numbers in single precision, from the base64 that Python has written. */
function decoded(text: string): Float64Array {
  return Float64Array.from(new Float32Array(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer));
}

const dot = (a: number[], b: number[]) => a.reduce((sum, value, i) => sum + value * b[i]!, 0);
