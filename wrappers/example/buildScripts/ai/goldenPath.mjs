// The golden path: over the graph that the last dream has left, which chains of documents lead
// from what holds the rest together to what is worth reading next.
import '../../../node/guard.mjs?task=golden-path';
import { job } from './lib/job.mjs';
import { ask } from './lib/programs.mjs';

await job('ai:golden-path', async say => {
  const golden = await ask('golden-path');
  say(`followed ${golden.edges} edges from ${golden.starts} of ${golden.documents} documents to ${golden.chains} others`);
  say(`kept ${golden.kept} paths; first: ${golden.first.join(' → ')}`);
});
