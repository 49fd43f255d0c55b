// Summarises what it is given, by its own best sentences:
//     curl -d '{"text": "…", "sentences": 2}' http://127.0.0.1:8703/summaries
import { summarize } from '../buildScripts/ai/lib/summarize.mjs';
import { Refusal, serve } from './serve.mjs';

serve('mlx', process.env.EXAMPLE_MLX_PORT ?? 8703, {
  'POST /summaries': ({ text, sentences = 3 }) => {
    if (typeof text !== 'string' || !Number.isInteger(sentences) || sentences < 1) throw new Refusal(400, 'expected: text, and a number of sentences');
    return summarize(text, sentences);
  },
});
