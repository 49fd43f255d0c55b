// A Node program that works under the lease and does what standard input says, a command per line.
//
//     node node_client.mjs LEASE_MJS TASK [OPTIONS_AS_JSON]
import { AsyncResource } from 'node:async_hooks';
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

const [file, task, options = '{}'] = process.argv.slice(2);
const { withLease } = await import(pathToFileURL(file));
const tell = (...said) => console.log(said.map(one => (typeof one === 'string' ? one : JSON.stringify(one))).join(' '));
const told = ({ name, message, reasonCode, holder, exitCode }) => ({ name, message, reasonCode, holder, exitCode });
const outside = AsyncResource.bind(fn => fn());     // what is no part of the work, in the same process
const waiting = new AbortController();

const lines = [];
let wake = () => {};
createInterface({ input: process.stdin })
  .on('line', line => (line === 'leave' ? waiting.abort(new Error('has left')) : wake(lines.push(line))))
  .on('close', () => wake(lines.push('end closed')));

async function command() {
  while (lines.length === 0) await new Promise(resolve => { wake = resolve; });
  return lines.shift().split(' ');
}

const actions = {
  throw: () => { throw new Error('the work has failed'); },
  nested: (lease, name) => withLease(name, inner => tell('nested', inner.id)),
  beside: (lease, name) => outside(() => withLease(name, inner => tell('beside', inner.id)).catch(error => tell('refused', told(error)))),
  yield: async lease => tell('yield', String(await lease.shouldYield())),
  spawn: (lease, ...argv) => {
    const child = spawn(argv[0], argv.slice(1), { env: { ...process.env, ...lease.env }, stdio: ['ignore', 'pipe', 'inherit'] });
    createInterface({ input: child.stdout }).on('line', line => tell('child', line));
  },
};

async function work(lease) {
  lease.signal.addEventListener('abort', () => tell('aborted', lease.signal.reason.name, lease.signal.reason.message));
  tell('holding', { ...lease, pid: process.pid });
  for (;;) {
    const [name, ...words] = await command();
    if (name === 'end') {
      tell('over');
      return words[0];
    }
    await actions[name](lease, ...words);
  }
}

try {
  tell('done', String(await withLease(task, work, { ...JSON.parse(options), signal: waiting.signal })));
} catch (error) {
  tell('failed', told(error));
  process.exitCode = 1;
}
process.stdin.destroy();
