/** All pages, in the order of their tabs. */
import type { Page } from "../page";
import { curvature } from "./curvature";
import { directions } from "./directions";
import { family } from "./family";
import { landscape } from "./landscape";
import { navigation } from "./navigation";
import { sine } from "./sine";

export const PAGES: readonly Page<any>[] = [sine, landscape, directions, curvature, family, navigation];
