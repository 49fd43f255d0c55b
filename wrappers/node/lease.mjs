// The lease for work inside a Node process, a daemon's for instance:
//
//     await withLease('dream', async lease => { … }, { wait: '10m' });
//
// `maintlock hold` keeps the lease in a process beside us, on a descriptor that we have opened:
// both carry the kernel's lock then, and it is free when both have let go. docs/node.md has more.
import { AsyncLocalStorage } from 'node:async_hooks';
import { execFile, spawn } from 'node:child_process';
import { closeSync, constants, openSync } from 'node:fs';
import { constants as system, devNull } from 'node:os';
import { createInterface } from 'node:readline';

const ATTEMPTS = 5;                     // the lock file may be replaced while we open it
const UNAVAILABLE = 73;
const NOT_FOUND = 127;
const YES = 0;
const NO = 1;

const around = new AsyncLocalStorage();
const paths = new Map();                // of lock files, by what was asked for

/** Somebody else has the lease. */
export class LeaseHeld extends Error {
  name = 'LeaseHeld';

  constructor(message, { task, lease, reasonCode, holder }) {
    super(message);
    Object.assign(this, { task, lease, reasonCode, holder });
  }
}

/** The lease cannot be had here: maintlock is missing, or refuses; `exitCode` says why, as that of `maintlock-wrap`. */
export class LeaseUnavailable extends Error {
  name = 'LeaseUnavailable';

  constructor(message, exitCode, options) {
    super(message, options);
    this.exitCode = exitCode;
  }
}

/** Why `lease.signal` was aborted: somebody asks to stop, or the process that helps to keep the lease has died. */
export class LeaseEnding extends Error {
  name = 'LeaseEnding';
}

/** Run `fn(lease)` under the lease of `task`; resolves to what it resolves to, when the lease is free again. */
export async function withLease(task, fn, options = {}) {
  const outer = around.getStore();
  const lease = await acquire(task, options, outer?.isHeld ? outer.env : {});
  let isDone = false;
  try {
    const result = await around.run(lease, fn, lease.given);
    isDone = true;
    return result;
  } finally {
    await lease.release(isDone);
  }
}

async function acquire(task, options, env) {
  const { lease, stateDir, command = 'maintlock', signal } = options;
  const key = JSON.stringify([task, lease, stateDir, command, process.cwd(), process.env.MAINTLOCK_CONFIG, process.env.MAINTLOCK_STATE_DIR]);
  for (let attempt = 0; attempt < ATTEMPTS; attempt += 1) {
    signal?.throwIfAborted();
    const fd = openLockFile(paths.get(key));
    try {
      const helper = new Helper(task, options, { ...process.env, ...env }, fd);
      const answer = await helper.answer(signal);
      if (answer.event === 'granted') return new Held(helper, answer, fd, command);
      if (answer.event === 'deferred') throw heldBySomebody(helper, answer, task);
      paths.set(key, answer.path);      // refused: another file
    } catch (error) {
      closeSync(fd);
      throw error;
    }
    closeSync(fd);
  }
  throw new LeaseUnavailable(`${task}: ${paths.get(key)} cannot be opened, or is replaced again and again`, UNAVAILABLE);
}

// Where the lock file is, `maintlock hold` tells who comes with another one: so the first attempt
// of a process brings nothing, and one whose file cannot be opened any more hears why.
function openLockFile(path) {
  try {
    if (path !== undefined) return openSync(path, constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW, 0o600);
  } catch {
    // the directory is gone, somebody has put a symlink there, …
  }
  try {
    return openSync(devNull, constants.O_RDWR);
  } catch (error) {
    throw new LeaseUnavailable(error.message, UNAVAILABLE, { cause: error });
  }
}

function heldBySomebody(helper, { reason_code: reasonCode, holder }, task) {
  const said = helper.said.find(({ event }) => event === 'deferred');
  return new LeaseHeld(said?.message ?? `${task} deferred`, { task, lease: said?.lease ?? holder?.lease, reasonCode, holder });
}

// The process of `maintlock hold`. `ended` resolves to its end in words, when all that it has said has been read.
class Helper {
  said = [];
  #lines = [];
  #wake = () => {};

  constructor(task, { lease, wait, owner, reason, ttl, source = 'library', stateDir, command = 'maintlock', log = logToStderr }, env, fd) {
    const given = { task, lease, wait, owner, reason, ttl, source, 'state-dir': stateDir, fd: 3, 'log-format': 'json' };
    const options = Object.entries(given).filter(([, value]) => value !== undefined && value !== null);
    this.process = spawn(command, ['hold', ...options.map(([name, value]) => `--${name}=${value}`)], { stdio: ['pipe', 'pipe', 'pipe', fd], env });
    this.process.stdin?.on('error', () => {});      // it may be gone before we say goodbye; `ended` tells
    this.ended = new Promise(resolve => {
      this.process.on('error', error => {
        this.error = error;
        if (this.process.pid === undefined) resolve(`cannot be started: ${error.message}`);
      });
      this.process.on('close', (code, signal) => resolve(signal ?? `exit ${code}`));
    });
    if (!this.process.stdout) return;   // no descriptors were left for pipes
    createInterface({ input: this.process.stdout }).on('line', line => this.#lines.push(line) && this.#wake());
    createInterface({ input: this.process.stderr }).on('line', line => this.#hear(line, log));
  }

  // What it says on stderr goes to the log, but for what becomes an error of ours.
  #hear(line, log) {
    const said = parsed(line) ?? { event: 'error', message: line.replace(/^maintlock: /, '') };  // before it knows of JSON
    this.said.push(said);
    if (said.event !== 'deferred' && said.event !== 'error') log(`maintlock: ${said.message}`);
  }

  // Its first line: what has become of our request. When `signal` is aborted we wait no longer.
  async answer(signal) {
    const leave = () => this.process.stdin?.end();
    signal?.addEventListener('abort', leave, { once: true });
    try {
      const answered = new Promise(resolve => { this.#wake = resolve; });
      await Promise.race([answered, this.ended]);
      const answer = parsed(this.#lines.shift() ?? '');
      if (answer?.event !== 'granted' || signal?.aborted) {
        leave();
        await this.ended;               // the rest of what it says is about that
      }
      if (signal?.aborted) throw signal.reason;
      if (answer === null) throw await this.#failure();
      return answer;
    } finally {
      signal?.removeEventListener('abort', leave);
    }
  }

  async #failure() {
    const ended = await this.ended;
    if (this.process.pid === undefined) {
      const [how, code] = this.error?.code === 'ENOENT'
        ? ['was not found; install it, from a checkout of maintlock: pipx install .', NOT_FOUND]
        : [ended, UNAVAILABLE];
      return new LeaseUnavailable(`no lease without maintlock, and ${this.process.spawnfile} ${how}`, code, { cause: this.error });
    }
    const said = this.said.filter(({ event }) => event === 'error').map(({ message }) => message);
    return new LeaseUnavailable(said.join('\n') || `maintlock hold ended (${ended})`, this.process.exitCode ?? undefined);
  }

  // Have `hear` called with each line that has come, or is to come.
  onLine(hear) {
    this.#wake = () => this.#lines.splice(0).forEach(line => hear(parsed(line)));
    this.#wake();
  }

  // While the work goes on it is the work that keeps this process alive, not the helper.
  ref(isWanted) {
    for (const one of [this.process, this.process.stdin, this.process.stdout, this.process.stderr]) {
      if (isWanted) one.ref();
      else one.unref();
    }
  }
}

// A grant of ours, and in `given` what the work sees of it.
class Held {
  isHeld = true;
  #helper;
  #fd;
  #ending = new AbortController();

  constructor(helper, { lease, lease_id: id, fence, task, env }, fd, command) {
    this.#helper = helper;
    this.#fd = fd;
    this.env = env;
    this.given = {
      lease, id, fence, task, env,
      signal: this.#ending.signal,
      shouldYield: ({ after } = {}) => shouldYield(command, lease, env, after),
    };
    helper.onLine(said => this.#onLine(said));
    helper.ended.then(end => {
      const carried = 'this process alone keeps the lease, until the work is done';
      if (this.isHeld) this.#ending.abort(new LeaseEnding(`${task}: maintlock hold has ended (${end}); ${carried}`));
    });
    helper.ref(false);
  }

  #onLine(said) {
    if (said?.event !== 'stop_requested') return;
    const name = Object.keys(system.signals).find(one => system.signals[one] === said.signal);
    this.#ending.abort(new LeaseEnding(`${this.given.task}: asked to stop (${name ?? said.signal})`));
  }

  // Over when the lease is free: what the work has started with `env` has ended then too.
  async release(isDone) {
    this.isHeld = false;
    this.#helper.ref(true);
    this.#helper.process.stdin.end(isDone ? '0\n' : '1\n');
    await this.#helper.ended;
    closeSync(this.#fd);
  }
}

function shouldYield(command, lease, env, after) {
  const words = ['should-yield', `--lease=${lease}`, ...(after === undefined ? [] : [`--after=${after}`])];
  return new Promise((resolve, reject) => {
    const child = execFile(command, words, { env: { ...process.env, ...env } }, (error, _, stderr) => {
      if (child.exitCode === YES || child.exitCode === NO) resolve(child.exitCode === YES);
      else reject(new LeaseUnavailable(stderr.trim() || error.message, child.exitCode ?? undefined, { cause: error }));
    });
  });
}

function parsed(line) {
  try {
    return JSON.parse(line);
  } catch {
    return null;
  }
}

function logToStderr(text) {
  console.error(text);
}
