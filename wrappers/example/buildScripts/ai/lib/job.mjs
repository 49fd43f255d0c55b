// What all heavy scripts share: a line per step, the time, an honest exit code.
import { Failure } from './failure.mjs';

// Run `work(say)`; `name` stands before each line. `work` resolves to an exit code, or to nothing for 0.
export async function job(name, work) {
  const started = performance.now();
  const say = text => console.log(`${name}: ${text}`);
  try {
    process.exitCode = (await work(say)) ?? 0;
    if (process.exitCode === 0) say(`done in ${((performance.now() - started) / 1000).toFixed(1)} s`);
  } catch (error) {
    console.error(`${name}: ${error instanceof Failure ? error.message : error.stack}`);
    process.exitCode = error.exitCode ?? 1;
  }
}

export const megabytes = bytes => `${(bytes / 1e6).toFixed(1)} MB`;
