// Dream: let the edges between documents fade, renew what the documents still say, rank them.
import '../../../node/guard.mjs?task=dream';
import { job } from './lib/job.mjs';
import { ask } from './lib/programs.mjs';

await job('ai:run-sandman', async say => {
  const graph = await ask('dream');
  say(`read ${graph.documents} documents, ${graph.words} words`);
  say(`edges: ${graph.added} new, ${graph.renewed} renewed, ${graph.faded} fading, ${graph.pruned} pruned; ${graph.edges} left`);
  say(`ranked in ${graph.iterations} iterations; first: ${graph.top.join(', ')}`);
});
