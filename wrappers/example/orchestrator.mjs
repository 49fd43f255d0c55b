// A daemon that does heavy work inside itself: every few seconds it dreams over the knowledge
// base, under the lease. While another works it says for whom it stands back, once.
//
//     node orchestrator.mjs [SECONDS]
import { setTimeout as sleep } from 'node:timers/promises';
import { LeaseHeld, withLease } from '../node/lease.mjs';
import { readDocuments } from './buildScripts/ai/lib/documents.mjs';
import { summarize } from './buildScripts/ai/lib/summarize.mjs';

const BETWEEN_CHECKPOINTS = 50;         // documents
const seconds = Number(process.argv[2] ?? 5);
const stopping = new AbortController();
const say = text => console.log(`orchestrator: ${text}`);
let stoodBackFor = null;

process.once('SIGINT', () => stopping.abort());
process.once('SIGTERM', () => stopping.abort());

say(`dreams every ${seconds} s (pid ${process.pid})`);
while (!stopping.signal.aborted) {
  try {
    say(await withLease('dream', dream, { source: 'orchestrator', reason: 'interval', signal: stopping.signal }));
    stoodBackFor = null;
  } catch (error) {
    if (error instanceof LeaseHeld) standBack(error);
    else if (!stopping.signal.aborted) say(`dream failed: ${error.message}`);
  }
  await sleep(seconds * 1000, undefined, { signal: stopping.signal }).catch(() => {});
}
say('stopped');

// Read all documents for what they say most of; end early for who waits, or when asked to.
async function dream(lease) {
  const documents = await readDocuments();
  let sentences = 0;
  for (const [index, { text }] of documents.entries()) {
    if (index % BETWEEN_CHECKPOINTS === 0 && (stopping.signal.aborted || lease.signal.aborted || await lease.shouldYield())) {
      return `dream ${lease.fence} ended early, after ${index} of ${documents.length} documents`;
    }
    sentences += summarize(text, 1).considered;
  }
  return `dream ${lease.fence} over ${documents.length} documents, ${sentences} sentences`;
}

// One line per blocker and reason, not one per attempt.
function standBack({ message, reasonCode, holder }) {
  const key = `${holder?.task} ${reasonCode}`;
  if (key !== stoodBackFor) say(message);
  stoodBackFor = key;
}
