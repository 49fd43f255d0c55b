// Other programs: the store (Python, for its SQLite), git. They end when we end.
import { spawn } from 'node:child_process';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { Failure } from './failure.mjs';
import { backups, database, summaries } from './places.mjs';

const store = path.join(path.dirname(fileURLToPath(import.meta.url)), 'store');
const running = new Set();

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
  process.once(signal, () => {
    stopPrograms(signal);
    process.kill(process.pid, signal);  // and now die of it ourselves
  });
}

function stopPrograms(signal = 'SIGTERM') {
  for (const child of running) child.kill(signal);
}

// Start a program; `ended` resolves to its exit code, or the name of the signal it died of.
function start(argv, options) {
  const child = spawn(argv[0], argv.slice(1), options);
  running.add(child);
  const ended = new Promise((resolve, reject) => {
    child.on('error', error => reject(new Failure(`cannot start ${argv[0]}: ${error.message}`, 127)));
    child.on('close', (code, signal) => resolve(code ?? signal));
  }).finally(() => running.delete(child));
  return { child, ended };
}

// Run a program to its end, `input` on its stdin; resolves to its stdout.
export async function run(argv, { input = '', env } = {}) {
  const { child, ended } = start(argv, { stdio: ['pipe', 'pipe', 'inherit'], env });
  const chunks = [];
  child.stdout.on('data', chunk => chunks.push(chunk));
  child.stdin.on('error', () => {});    // it ended without reading all of it; its exit code tells
  child.stdin.end(input);
  const end = await ended;
  if (end !== 0) throw new Failure(`${argv.slice(0, 4).join(' ')} … ended with ${end}`);
  return Buffer.concat(chunks).toString();
}

// One operation on the database: a JSON request, a JSON answer.
export async function ask(operation, request = {}) {
  const python = process.env.EXAMPLE_PYTHON || 'python3';
  const input = JSON.stringify({ ...request, database, backups, summaries });
  return JSON.parse(await run([python, '-B', store, operation], { input }));
}

export async function git(directory, argv, input) {
  return (await run(['git', '-C', directory, ...argv], { input, env: gitEnvironment() })).trim();
}

// Without the variables of a git hook that started us: they point to its own repository.
export function gitEnvironment() {
  const ofHooks = ['GIT_DIR', 'GIT_WORK_TREE', 'GIT_INDEX_FILE', 'GIT_PREFIX', 'GIT_OBJECT_DIRECTORY'];
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !ofHooks.includes(name)));
}
