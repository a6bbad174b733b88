/** All pages, in the order of their tabs. */
import type { Page } from "../page";
import { navigation } from "./navigation";
import { sine } from "./sine";

export const PAGES: readonly Page<any>[] = [sine, navigation];
