// Answers full-text queries over the knowledge base, also while a job writes to it:
//     curl 'http://127.0.0.1:8701/query?text=lease&limit=3'
import { ask } from '../buildScripts/ai/lib/programs.mjs';
import { Refusal, serve } from './serve.mjs';

serve('chroma', process.env.EXAMPLE_CHROMA_PORT ?? 8701, {
  'GET /query': (_, parameters) => {
    const query = parameters.get('text');
    const limit = Number(parameters.get('limit') ?? 5);
    if (!query || !Number.isInteger(limit) || limit < 1 || limit > 100) throw new Refusal(400, 'expected: text, and a limit of 1 to 100');
    return ask('search', { query, limit });
  },
});
