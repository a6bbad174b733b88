/** Random numbers that ten lines of numpy give, too: a hash of a seed, a stream and a counter, 32 bits each. */

/** lowbias32 of Chris Wellons (https://nullprogram.com/blog/2018/07/31/). */
export function hash(x: number): number {
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return (x ^ (x >>> 16)) >>> 0;
}

/** One stream of a seed: `uniform(i)` is its i-th number, in [0, 1), the same whenever it is asked for. */
export class Random {
  private readonly key: number;

  constructor(seed: number, stream: number) {
    this.key = hash((hash((seed + 1) >>> 0) + stream) >>> 0);
  }

  uniform(index: number, low = 0, high = 1): number {
    return low + (high - low) * (hash((this.key + index) >>> 0) / 2 ** 32);
  }

  /** Box and Muller's: of two uniform numbers. */
  normal(index: number): number {
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform(2 * index)));
    return radius * Math.cos(2 * Math.PI * this.uniform(2 * index + 1));
  }
}

/** What each stream of a seed is for. */
export const Stream = { weights: 0, training: 1, heldOut: 2, shown: 3 } as const;

/** The same in Python, for what "copy as Python" gives. */
export const PYTHON = `import numpy as np

def hashed(x):
    x = np.asarray(x, np.uint32)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))

def uniform(seed, stream, index, low=0.0, high=1.0):
    with np.errstate(over="ignore"):
        key = hashed(hashed(np.uint32(seed + 1)) + np.uint32(stream))
        return low + (high - low) * (hashed(key + np.asarray(index, np.uint32)) / 2.0**32)

def normal(seed, stream, index):
    radius = np.sqrt(-2 * np.log(1 - uniform(seed, stream, 2 * np.asarray(index))))
    return radius * np.cos(2 * np.pi * uniform(seed, stream, 2 * np.asarray(index) + 1))
`;
