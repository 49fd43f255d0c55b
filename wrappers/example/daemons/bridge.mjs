// Takes hand-overs of sessions, and puts them into the inbox of the summaries:
//     curl -d '{"session": "mine", "done": ["Something."]}' http://127.0.0.1:8702/handovers
import { mkdir, rename, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { handovers } from '../buildScripts/ai/lib/places.mjs';
import { Refusal, serve } from './serve.mjs';

let number = 0;

serve('bridge', process.env.EXAMPLE_BRIDGE_PORT ?? 8702, {
  'POST /handovers': async handover => {
    const { session, done = [], notes = [], open = [] } = handover;
    const texts = [done, notes, open].flat();
    if (!/^[\w-]{1,64}$/.test(session) || texts.length === 0 || !texts.every(text => typeof text === 'string')) {
      throw new Refusal(400, 'expected: session (a name), and texts in done, notes or open');
    }
    const at = new Date().toISOString();
    number += 1;
    const name = `${at.replace(/[:.]/g, '')}-${process.pid}-${number}-${session}.json`;
    await mkdir(handovers, { recursive: true });
    const temporary = path.join(handovers, `.${name}.new`);   // no *.json before it is whole
    await writeFile(temporary, `${JSON.stringify({ session, at, done, notes, open }, null, 2)}\n`);
    await rename(temporary, path.join(handovers, name));
    return { written: `handovers/${name}` };
  },
});
