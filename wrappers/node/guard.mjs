// The guard inside a script: as its first import,
//
//     import './maintlock/guard.mjs?task=backup';
//
// has the script run under the lease also when it is started as `node backup.mjs`, past npm.
// In a process that is part of a job of this task already, nothing happens. Otherwise the
// script starts once more, as `maintlock-wrap -t backup -- node backup.mjs`, before any import
// after this one; the wrapper decides whether it runs, joins, queues or stands back.
//
// What can be said behind the `?` is in OPTIONS; docs/node.md has the rest.
import { spawnSync } from 'node:child_process';
import { accessSync, constants, closeSync, openSync, readFileSync, readSync, statSync, writeSync } from 'node:fs';
import { Socket } from 'node:net';
import { constants as system } from 'node:os';
import path from 'node:path';
import { isMainThread } from 'node:worker_threads';

const OPTIONS = ['task', 'lease', 'owner', 'reason', 'wait', 'defer-exit-code', 'max-runtime', 'stop-grace', 'ttl'];
const USAGE = 64;
const NOT_FOUND = 127;
const SIGNAL_BASE = 128;
const LINE_WIDTH = 480;                 // of the record in the lock file; its fields, as in maintlock/line.py
const LINE_FIELDS = 18;
const [MAGIC, LEASE_ID, TASK, OUTCOME] = [0, 3, 4, 15];
const LIFELINE = 3;                     // the descriptor through which we hear that the node that started us is gone

// What the second start knows itself by. Not in the environment, which everything inherits that
// the script starts, daemons too. An import condition that no package has changes nothing.
const INSTEAD = '--conditions=maintlock-instead';   // we are in the first one's place
const BESIDE = '--conditions=maintlock-beside';     // the first one waits for us

// A process is guarded once, whatever else in it imports this file under another query.
const GUARDED = Symbol.for('maintlock.guarded');

if (!globalThis[GUARDED]) {
  globalThis[GUARDED] = true;
  guard(new URL(import.meta.url).searchParams);
}

function guard(options) {
  if (takeMark(INSTEAD)) return;
  if (takeMark(BESIDE)) {
    endWithStarter();
    return;
  }
  const task = options.get('task') || null;
  if (isInside(task)) return;
  const name = task ?? process.env.npm_lifecycle_event ?? 'this script';

  const unknown = [...options.keys()].find(option => !OPTIONS.includes(option));
  if (unknown !== undefined) fail(USAGE, `guard.mjs: unknown option ${unknown}; possible are ${OPTIONS.join(' ')}`);
  if (task === null && !process.env.npm_lifecycle_event) {
    fail(USAGE, "guard.mjs: no task given; say which one this is: import '…/guard.mjs?task=NAME'");
  }
  if (!isMainThread) {
    throw new Error(`maintlock: guard.mjs cannot start ${name} again from a worker thread; use withLease of lease.mjs`);
  }
  const wrap = findOnPath('maintlock-wrap');
  if (wrap === null) {
    withoutMaintlock(name);
    return;
  }
  if (process.channel) {
    fail(USAGE, `guard.mjs: ${name} was started by fork(), whose channel cannot be handed on; start it with spawn(), `
      + "or with fork(script, { execPath: 'maintlock-wrap', execArgv: ['-t', NAME, '--', process.execPath] })");
  }
  startAgain(wrap, [...options].map(([option, value]) => `--${option}=${value}`), name);
}

// Was this process started by the guard? The mark is taken off, or fork() would hand it on.
function takeMark(mark) {
  const at = process.execArgv.indexOf(mark);
  if (at >= 0) process.execArgv.splice(at, 1);
  return at >= 0;
}

// Are we part of a job of this task? The environment proves nothing by itself: it must name a grant
// of our session, and the lock file's record must name the same grant as going on. Which task that
// is of is in the record; of a job that has joined it, MAINTLOCK_TASK tells alone. Where none of
// that can be seen (no /proc) maintlock-wrap finds out. A job of another task is joined, on record.
function isInside(task) {
  const { MAINTLOCK_HELD: held = '', MAINTLOCK_STATE_DIR: directory, MAINTLOCK_TASK: joined } = process.env;
  const session = readStat()?.session;
  const grants = held.split(' ').map(grant => grant.split(':')).filter(([, , of]) => of === session);
  if (!session || !directory || grants.length === 0) return false;
  const [lease, id] = grants.at(-1);    // the innermost
  const line = readLine(path.join(directory, `${lease}.lock`));
  if (line.length !== LINE_FIELDS || line[MAGIC] !== 'maintlock1' || line[LEASE_ID] !== id) return false;
  return line[OUTCOME] === '-' && (task === null || task === line[TASK] || task === joined);
}

function readLine(file) {
  let fd;
  try {
    fd = openSync(file, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    const content = Buffer.alloc(LINE_WIDTH);
    return content.toString('latin1', 0, readSync(fd, content, 0, LINE_WIDTH, 0)).trim().split(/ +/);
  } catch {
    return [];
  } finally {
    if (fd !== undefined) closeSync(fd);
  }
}

// Our row of proc_pid_stat(5), or null where there is none.
function readStat() {
  try {
    const stat = readFileSync('/proc/self/stat', 'latin1');
    const [, , group, session, , foreground] = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return { group, session, foreground };
  } catch {
    return null;
  }
}

function findOnPath(program) {
  for (const directory of (process.env.PATH ?? '').split(path.delimiter)) {
    const file = path.resolve(directory, program);
    try {
      accessSync(file, constants.X_OK);
      if (statSync(file).isFile()) return file;
    } catch {
      // not here
    }
  }
  return null;
}

function withoutMaintlock(name) {
  const why = process.platform === 'win32' ? 'Windows has no flock(2), which it is made of' : 'maintlock-wrap is not on PATH';
  if (process.env.MAINTLOCK_OPTIONAL !== '1') {
    fail(NOT_FOUND, `${name} does not run without the lease of heavy jobs, but ${why}`,
      ...(process.platform === 'win32' ? [] : ['  install it, from a checkout of maintlock: pipx install .']),
      '  or, where nothing else heavy can run (CI), set MAINTLOCK_OPTIONAL=1 to run unguarded');
  }
  say(`warning: ${why} and MAINTLOCK_OPTIONAL=1: ${name} runs unguarded`);
}

// From here on nothing of this process goes on: node becomes the wrapper where it can (22.15 and
// later), so that signals, the parent and the pid are exactly as they were. Elsewhere it waits.
function startAgain(wrap, options, name) {
  const evaluates = process.execArgv.some(one => /^(-[a-z]*[ep]|--eval|--print)(=|$)/.test(one));
  if (!evaluates && (process.argv[1] === undefined || process.argv[1] === '-')) {
    fail(USAGE, `guard.mjs: ${name} was read from standard input, which cannot be read again; start it from a file`);
  }
  const again = mark => [...options, '--', process.execPath, ...process.execArgv, mark, ...(evaluates ? ['--'] : []), ...process.argv.slice(1)];

  if (process.execve) process.execve(wrap, [wrap, ...again(INSTEAD)], process.env);

  // In the foreground of a terminal Ctrl-C is for the script too, and it may want to finish something.
  const stat = readStat();
  const survived = stat === null || stat.group === stat.foreground ? ['SIGINT', 'SIGQUIT'] : [];
  for (const signal of survived) process.on(signal, ignore);
  process.title = `maintlock-guard: ${name}`;   // or doctor would take us for the script, at work outside the lease
  const { error, signal, status } = spawnSync(wrap, again(BESIDE), { stdio: ['inherit', 'inherit', 'inherit', 'pipe'] });
  for (const one of survived) process.off(one, ignore);
  if (error) fail(NOT_FOUND, `guard.mjs: cannot start ${wrap}: ${error.message}`);
  if (signal) {
    process.kill(process.pid, signal);
    process.exit(SIGNAL_BASE + system.signals[signal]);
  }
  process.exit(status);
}

function ignore() {}

// The node that started us is who others know: if it is ended alone (child.kill() of a daemon),
// that was meant for us, and goes the way it would have gone through the wrapper.
function endWithStarter() {
  const wrapper = process.ppid;
  const starter = new Socket({ fd: LIFELINE });
  starter.unref();
  starter.on('error', ignore);
  starter.on('close', () => process.kill(process.ppid === wrapper && wrapper > 1 ? wrapper : process.pid, 'SIGTERM'));
  starter.resume();
}

function say(...lines) {
  try {
    writeSync(2, lines.map(line => `maintlock: ${line}\n`).join(''));
  } catch {
    // nobody listens
  }
}

function fail(code, ...lines) {
  say(...lines);
  process.exit(code);
}
