/** The numerics, which know nothing of a page. */
export * from "./adam";
export * from "./algorithms";
export * from "./cavia";
export * from "./imaml";
export * from "./kernel";
export * from "./learner";
export * from "./navigation";
export * from "./policy";
export * from "./random";
export * from "./sines";
export * from "./plane";
