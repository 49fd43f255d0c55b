// Index the knowledge base: changed documents only, or with --rebuild all of them.
import '../../../node/guard.mjs?task=kbSync';
import { job, megabytes } from './lib/job.mjs';
import { readDocuments } from './lib/documents.mjs';
import { parse } from './lib/markdown.mjs';
import { ask } from './lib/programs.mjs';

await job('ai:sync-kb', async say => {
  const documents = await readDocuments();
  const known = process.argv.includes('--rebuild') ? {} : (await ask('known')).hashes;
  const changed = documents.filter(({ path, hash }) => known[path] !== hash);
  say(`read ${documents.length} documents (${megabytes(documents.reduce((sum, { text }) => sum + Buffer.byteLength(text), 0))}), ${changed.length} changed`);

  const answer = await ask('sync', {
    present: documents.map(({ path }) => path),
    changed: changed.map(({ path, hash, text }) => ({ path, hash, ...parse(text, path) })),
  });
  say(`wrote ${answer.written} chunks, removed ${answer.removed} documents; index of ${answer.chunks} chunks checked`);
});
