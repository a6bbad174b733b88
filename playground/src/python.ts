/** What the programs of "copy as Python" have in common. */

/** Numbers in single precision as base64. */
export function encoded(values: ArrayLike<number>): string {
  const bytes = new Uint8Array(Float32Array.from(values).buffer);
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
}
