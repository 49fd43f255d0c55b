// Runs npm scripts with npm's own code, many in one process: npm_scripts.mjs NPM < CASES
// CASES is a JSON array of {path, scripts, event, args, env, shell}; prints an array of {code, signal, stdout}.
import {createRequire} from 'node:module';
import {realpathSync} from 'node:fs';
import {dirname} from 'node:path';
import {text} from 'node:stream/consumers';

const require = createRequire(import.meta.url);
const runScript = require(require.resolve('@npmcli/run-script', {paths: [dirname(realpathSync(process.argv[2]))]}));

async function run({path, scripts, event, args, env, shell}) {
    const pkg = {_id: 'x@1.0.0', name: 'x', version: '1.0.0', scripts};
    const options = {event, path, pkg, args, env, scriptShell: shell, stdio: 'pipe', stdioString: true};
    const {code, signal, stdout} = await runScript(options).catch(error => error);
    return {code, signal, stdout};
}

const results = [];
for (const one of JSON.parse(await text(process.stdin))) {
    results.push(await run(one));
}
console.log(JSON.stringify(results));
