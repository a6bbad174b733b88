import { defineConfig } from "vite";
import { viteSingleFile } from "vite-plugin-singlefile";

// `--mode single` writes the whole site again as one file that opens from a folder.
export default defineConfig(({ mode }) => {
  const single = mode === "single";
  return {
    base: "./",
    plugins: single ? [viteSingleFile({ removeViteModuleLoader: true })] : [],
    build: {
      target: "es2022",
      outDir: single ? "dist/single" : "dist",
      assetsInlineLimit: 1 << 20, // the kernel as base64, in both
      modulePreload: false,
    },
    worker: { format: "iife" as const },
  };
});
