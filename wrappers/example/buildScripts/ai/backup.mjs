// Copy the database while others may use it, check the copy, keep the newest few.
import '../../../node/guard.mjs?task=backup';
import { job, megabytes } from './lib/job.mjs';
import { ask } from './lib/programs.mjs';

const KEPT = 5;

await job('ai:backup', async say => {
  const copy = await ask('backup', { kept: KEPT });
  say(`copied ${copy.documents} documents, ${copy.chunks} chunks, ${copy.edges} edges (${megabytes(copy.bytes)}); integrity ok`);
  say(`wrote ${copy.path} (${megabytes(copy.packed_bytes)}), read back whole; ${copy.kept} kept, ${copy.dropped} dropped`);
});
