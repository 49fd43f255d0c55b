// Summarise hand-overs and documents by their own best sentences: what changed, or with
// --rebuild all of it.
import '../../../node/guard.mjs?task=summary';
import { readdir, readFile } from 'node:fs/promises';
import path from 'node:path';
import { hashOf, readDocuments } from './lib/documents.mjs';
import { Failure } from './lib/failure.mjs';
import { job } from './lib/job.mjs';
import { handovers } from './lib/places.mjs';
import { ask } from './lib/programs.mjs';
import { summarize } from './lib/summarize.mjs';

const SENTENCES = 4;

await job('ai:summarize', async say => {
  const { sessions, broken } = await readHandovers();
  const documents = (await readDocuments()).map(document => ({ ...document, kind: 'document' }));
  const known = process.argv.includes('--rebuild') ? {} : (await ask('summarized')).hashes;
  const changed = [...sessions, ...documents].filter(({ path: source, hash }) => known[source] !== hash);
  say(`read ${sessions.length} hand-overs and ${documents.length} documents, ${changed.length} changed`);

  let considered = 0;
  const made = changed.map(({ path: source, kind, hash, text }) => {
    const summary = summarize(text, SENTENCES);
    considered += summary.considered;
    return { source, kind, hash, summary: summary.sentences };
  });
  const answer = await ask('summaries', { present: [...sessions, ...documents].map(({ path: source }) => source), made });
  say(`chose ${answer.sentences} of ${considered} sentences; wrote ${answer.written} summaries, dropped ${answer.dropped}`);
  if (broken.length) throw new Failure(`could not read ${broken.join('; ')}`);
});

// The hand-overs as text; one that cannot be read does not keep the others from being summarised.
async function readHandovers() {
  const sessions = [];
  const broken = [];
  const names = await readdir(handovers).catch(error => {
    if (error.code === 'ENOENT') return [];
    throw error;
  });
  for (const name of names.filter(one => one.endsWith('.json')).sort()) {
    try {
      const json = await readFile(path.join(handovers, name), 'utf8');
      sessions.push({ path: `handovers/${name}`, kind: 'handover', hash: hashOf(json), text: textOf(JSON.parse(json)) });
    } catch (error) {
      broken.push(`handovers/${name}: ${error.message}`);
    }
  }
  return { sessions, broken };
}

// The sentences of a hand-over: every string in its "done", "notes" and "open".
function textOf(handover) {
  const parts = [handover?.done, handover?.notes, handover?.open].flat().filter(part => typeof part === 'string');
  if (parts.length === 0) throw new Error('has no text in "done", "notes" or "open"');
  return parts.join('\n\n');
}
