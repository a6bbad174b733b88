/** All pages, in the order of their tabs. */
import type { Page } from "../page";
import { family } from "./family";
import { sine } from "./sine";

export const PAGES: readonly Page<any>[] = [sine, family];
