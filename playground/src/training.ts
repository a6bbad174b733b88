/** What the page says to the worker that trains. */

import type { Progress, Start } from "./worker";
import TrainingWorker from "./worker?worker&inline";

export class Training {
  private worker: Worker | null = null;
  isPlaying = false;

  constructor(private readonly module: WebAssembly.Module, private readonly onProgress: (progress: Progress) => void) {}

  start(given: Omit<Start, "module">): void {
    this.stop();
    this.worker = new TrainingWorker();
    this.worker.onmessage = ({ data }: MessageEvent<Progress>) => {
      this.isPlaying &&= !data.isDone;
      this.onProgress(data);
    };
    this.worker.postMessage({ ...given, module: this.module } satisfies Start);
    this.isPlaying = true;
  }

  toggle(): void {
    this.isPlaying = !this.isPlaying;
    this.worker?.postMessage(this.isPlaying ? "play" : "pause");
  }

  /** One meta-update, of a training that pauses. */
  step(): void {
    this.worker?.postMessage("step");
  }

  stop(): void {
    this.worker?.terminate();
    this.worker = null;
    this.isPlaying = false;
  }
}
