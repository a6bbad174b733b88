/** The C kernel of `mlp_adapt`, compiled to WebAssembly: all tasks of a meta-batch adapted, and their meta-gradient. */

import constants from "../built/kernel.json";
import url from "../built/kernel.wasm?url";

/** Perceptrons: `widths` of their layers, from the inputs to the outputs. */
export interface Network {
  widths: number[];
  activation: "relu" | "tanh";
}

/** Tasks for regression, each `[tasks, rows, width]` in one array. */
export interface Tasks {
  count: number;
  supportInputs: Float32Array;
  supportTargets: Float32Array;
  queryInputs: Float32Array;
  queryTargets: Float32Array;
}

export interface Adapted {
  /** `[tasks]`: of the query rows, after the last step. */
  losses: Float32Array;
  /** `[tasks, queries, out]` */
  predictions: Float32Array;
  /** `[tasks, steps + 1]`: of the support rows, before the first step and after each. */
  supportLosses: Float32Array;
  /** `[P]`: of the mean of the losses. */
  gradient: Float32Array;
  /** As the rates: `[steps, columns]`. */
  ratesGradient: Float32Array;
}

export interface Curvature {
  /** `[tasks]` */
  losses: Float32Array;
  /** `[tasks, rows, out]` */
  predictions: Float32Array;
  /** `[tasks, P]` */
  gradients: Float32Array;
  /** `[tasks, P]`, where directions were given */
  products: Float32Array;
}

interface Exports {
  memory: WebAssembly.Memory;
  malloc(bytes: number): number;
  free(at: number): void;
  adapt(problem: number): number;
  curvature(problem: number, parameters: number, directions: number, gradients: number, products: number): number;
  size_of_problem(): bigint;
  _initialize(): void;
}

/** How many numbers a network has, weights `[out, in]` and biases `[out]` a layer. */
export function size(widths: number[]): number {
  return widths.slice(1).reduce((sum, out, layer) => sum + (widths[layer]! + 1) * out, 0);
}

const BYTES = { int64: 8, double: 8, pointer: 4 };

/** Compiled once; a worker is sent what this gives. */
export async function compiled(): Promise<WebAssembly.Module> {
  const text = atob(url.slice(url.indexOf(",") + 1));
  return WebAssembly.compile(Uint8Array.from(text, (letter) => letter.charCodeAt(0)));
}

export class Kernel {
  private readonly room = new Map<string, { at: number; bytes: number }>();
  private readonly problem: number;

  private constructor(private readonly c: Exports) {
    c._initialize();
    this.problem = this.place("problem", Number(c.size_of_problem()));
  }

  static async of(module: WebAssembly.Module): Promise<Kernel> {
    return new Kernel((await WebAssembly.instantiate(module, {})).exports as unknown as Exports);
  }

  /**
   * Inner steps of gradient descent on each task's mean squared error, and the meta-gradient through them.
   *
   * @param parameters where all tasks begin, `[P]`
   * @param rates `[steps, columns]`: one column, or one for each parameter
   * @param order 2 for the whole meta-gradient, 1 without second derivatives
   */
  adapt(
    network: Network, parameters: ArrayLike<number>, tasks: Tasks, rates: ArrayLike<number>, steps: number, order: 1 | 2 = 2,
  ): Adapted {
    const { widths } = network, out = widths.at(-1)!, count = tasks.count;
    const rows = tasks.supportInputs.length / count / widths[0]!, queries = tasks.queryInputs.length / count / widths[0]!;
    const columns = steps ? rates.length / steps : 1;
    const result = {
      task_losses: count, predictions: count * queries * out, support_losses: count * (steps + 1),
      of_theta: size(widths), of_rates: rates.length || 1,
    };
    this.describe(network, {
      tasks: count, rows, queries, steps, loss: constants.losses.indexOf("mse"), order, rates_grad: 1, rate_columns: columns,
      threads: 1, theta: this.put("theta", parameters), rates: this.put("rates", rates),
      support_inputs: this.put("si", tasks.supportInputs), support_targets: this.put("st", tasks.supportTargets),
      query_inputs: this.put("qi", tasks.queryInputs), query_targets: this.put("qt", tasks.queryTargets),
      ...Object.fromEntries(Object.entries(result).map(([name, length]) => [name, this.place(name, 4 * length)])),
    });
    this.check(this.c.adapt(this.problem));
    return {
      losses: this.take("task_losses", result.task_losses), predictions: this.take("predictions", result.predictions),
      supportLosses: this.take("support_losses", result.support_losses), gradient: this.take("of_theta", result.of_theta),
      ratesGradient: this.take("of_rates", rates.length),
    };
  }

  /** At parameters `[tasks, P]` of each task's own: losses, predictions, gradients, and the Hessian times directions. */
  curvature(
    network: Network, parameters: ArrayLike<number>, inputs: Float32Array, targets: Float32Array, directions?: ArrayLike<number>,
  ): Curvature {
    const { widths } = network, out = widths.at(-1)!, P = size(widths), count = parameters.length / P;
    const rows = inputs.length / count / widths[0]!;
    this.describeRows(network, count, rows, inputs, targets);
    const at = this.put("parameters", parameters), along = directions ? this.put("directions", directions) : 0;
    const gradients = this.place("gradients", 4 * count * P), products = directions ? this.place("products", 4 * count * P) : 0;
    this.check(this.c.curvature(this.problem, at, along, gradients, products));
    return {
      losses: this.take("support_losses", count), predictions: this.take("predictions", count * rows * out),
      gradients: this.take("gradients", count * P), products: directions ? this.take("products", count * P) : new Float32Array(),
    };
  }

  /** Predictions `[tasks, rows, out]` of networks with parameters `[tasks, P]`, all for the same inputs `[rows, in]`. */
  predict(network: Network, parameters: Float64Array[], inputs: number[]): Float32Array {
    const { widths } = network, count = parameters.length, rows = inputs.length / widths[0]!, length = count * rows * widths.at(-1)!;
    const all = new Float32Array(count * inputs.length), flat = new Float64Array(count * size(widths));
    for (const [task, own] of parameters.entries()) {
      all.set(inputs, task * inputs.length);
      flat.set(own, task * own.length);
    }
    this.describeRows(network, count, rows, all, new Float32Array(length));
    this.check(this.c.curvature(this.problem, this.put("parameters", flat), 0, 0, 0));
    return this.take("predictions", length);
  }

  /** As C's `curvature` reads it: rows and their targets, without steps. */
  private describeRows(network: Network, count: number, rows: number, inputs: Float32Array, targets: Float32Array): void {
    this.describe(network, {
      tasks: count, rows, queries: 0, steps: 0, loss: constants.losses.indexOf("mse"), order: 2, rates_grad: 0, rate_columns: 1,
      threads: 1, support_inputs: this.put("si", inputs), support_targets: this.put("st", targets),
      support_losses: this.place("support_losses", 4 * count), predictions: this.place("predictions", 4 * targets.length),
    });
  }

  /** Fills the fields of C's `Problem`, as Python lists them; what is not named is 0. */
  private describe(network: Network, named: Record<string, number>): void {
    const view = new DataView(this.c.memory.buffer, this.problem);
    const values: Record<string, number[]> = {
      layers: [network.widths.length - 1], activation: [constants.activations.indexOf(network.activation)],
      widths: network.widths, ...Object.fromEntries(Object.entries(named).map(([name, value]) => [name, [value]])),
    };
    let at = 0;
    for (const [name, kind, length] of constants.fields as [string, keyof typeof BYTES, number][]) {
      for (let i = 0; i < length; i++, at += BYTES[kind]) {
        const value = values[name]?.[i] ?? 0;
        if (kind === "int64") view.setBigInt64(at, BigInt(value), true);
        else if (kind === "double") view.setFloat64(at, value, true);
        else view.setUint32(at, value, true);
      }
    }
  }

  private check(code: number): void {
    if (code) throw new Error(`Expected the kernel to be done but it says ${constants.returns[code]}.`);
  }

  /** Room for so many bytes, kept for the next call. */
  private place(name: string, bytes: number): number {
    const old = this.room.get(name);
    if (old && old.bytes >= bytes) return old.at;
    if (old) this.c.free(old.at);
    const at = this.c.malloc(bytes);
    if (!at) throw new Error(`Expected room for ${bytes} bytes but there is none.`);
    this.room.set(name, { at, bytes });
    return at;
  }

  private put(name: string, values: ArrayLike<number>): number {
    const at = this.place(name, 4 * values.length);
    new Float32Array(this.c.memory.buffer, at, values.length).set(values);
    return at;
  }

  private take(name: string, length: number): Float32Array {
    return new Float32Array(this.c.memory.buffer, this.room.get(name)!.at, length).slice();
  }
}
