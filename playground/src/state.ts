/** The state of a page: each property once, with its type and what is allowed, read from and written to the address. */

export interface Property<T> {
  readonly initial: T;
  /** The value of a text of the address, or undefined where it is none. */
  read(text: string): T | undefined;
  write(value: T): string;
  /** What is allowed, in words. */
  readonly allowed: string;
}

export type Schema = Record<string, Property<any>>;
export type Values<S extends Schema> = { [K in keyof S]: S[K] extends Property<infer T> ? T : never };

/** Numbers from `low` to `high`, kept to so many digits behind the point. */
export function number(initial: number, low: number, high: number, digits = 2): Property<number> {
  return {
    initial,
    read: (text) => {
      const value = Number(text);
      return /^-?\d+(\.\d+)?$/.test(text) && value >= low && value <= high ? Number(value.toFixed(digits)) : undefined;
    },
    write: (value) => String(Number(value.toFixed(digits))),
    allowed: `a number from ${low} to ${high}`,
  };
}

export const whole = (initial: number, low: number, high: number): Property<number> => ({
  ...number(initial, low, high, 0),
  read: (text) => (/^-?\d{1,10}$/.test(text) && Number(text) >= low && Number(text) <= high ? Number(text) : undefined),
  allowed: `a whole number from ${low} to ${high}`,
});

export function choice<T extends string>(initial: T, options: readonly T[]): Property<T> {
  return {
    initial, read: (text) => options.find((option) => option === text), write: (value) => value,
    allowed: `one of ${options.join(", ")}`,
  };
}

/** Any of several words, without an order. */
export function several<T extends string>(initial: readonly T[], options: readonly T[]): Property<readonly T[]> {
  return {
    initial,
    read: (text) => {
      const words = text === "" ? [] : text.split(",");
      return words.every((word) => (options as readonly string[]).includes(word)) ? options.filter((option) => words.includes(option)) : undefined;
    },
    write: (value) => options.filter((option) => value.includes(option)).join(","),
    allowed: `any of ${options.join(",")}`,
  };
}

export type Point = readonly [number, number];

/** From `least` to `most` points within an interval each; null stands for "not chosen", and is not in the address. */
export function points<T extends Point[] | null>(initial: T, x: Point, y: Point, most = 30, least = 0): Property<Point[] | T> {
  const each = [number(0, ...x), number(0, ...y)] as const;
  return {
    initial,
    read: (text) => {
      const all = text === "" ? [] : text.split("_").map((pair) => pair.split(",").map((one, i) => each[i]?.read(one)));
      const isRight = all.length <= most && all.length >= least && all.every((pair) => pair.length === 2 && pair.every((one) => one !== undefined));
      return isRight ? (all as unknown as Point[]) : undefined;
    },
    write: (value) => (value ?? []).map(([a, b]) => `${each[0].write(a)},${each[1].write(b)}`).join("_"),
    allowed: `${least ? `${least} to` : "at most"} ${most} points x,y_x,y within ${x.join(" to ")} and ${y.join(" to ")}`,
  };
}

/** The values of a page; whoever sets one tells all who look. */
export class State<S extends Schema> {
  values: Values<S>;
  private readonly watchers: ((changed: ReadonlySet<keyof S>) => void)[] = [];

  constructor(readonly schema: S) {
    this.values = this.initial();
  }

  private initial(): Values<S> {
    return Object.fromEntries(Object.entries(this.schema).map(([name, { initial }]) => [name, initial])) as Values<S>;
  }

  /** Takes what an address says, the rest as it is at first; returns a line for everything that is not allowed. */
  read(query: string): string[] {
    const complaints: string[] = [], values: Record<string, unknown> = this.initial();
    for (const [name, text] of new URLSearchParams(query)) {
      const property = Object.hasOwn(this.schema, name) ? this.schema[name] : undefined;
      const value = property?.read(text);
      if (!property) complaints.push(`Expected one of ${Object.keys(this.schema).join(", ")} in the address but got "${name}".`);
      else if (value === undefined) complaints.push(`Expected "${name}" to be ${property.allowed} but got "${text}".`);
      else values[name] = value;
    }
    this.values = values as Values<S>;
    this.tell(new Set(Object.keys(this.schema)));
    return complaints;
  }

  /** For the address: what differs from the beginning. */
  write(): string {
    const query = new URLSearchParams();
    for (const [name, property] of Object.entries(this.schema)) {
      const value = this.values[name as keyof S];
      if (value !== property.initial && property.write(value) !== property.write(property.initial)) query.set(name, property.write(value));
      else if (value !== null && property.initial === null) query.set(name, property.write(value));
    }
    return query.toString().replaceAll("%2C", ",");
  }

  set(changes: Partial<Values<S>>): void {
    Object.assign(this.values, changes);
    this.tell(new Set(Object.keys(changes)));
  }

  watch(watcher: (changed: ReadonlySet<keyof S>) => void): void {
    this.watchers.push(watcher);
  }

  private tell(changed: ReadonlySet<keyof S>): void {
    for (const watcher of this.watchers) watcher(changed);
  }
}
