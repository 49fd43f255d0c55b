// Extractive summary in the manner of TextRank (Mihalcea and Tarau 2004): sentences vote for
// those they share words with; the most voted for are taken, in the order of the text.
const DAMPING = 0.85;
const ITERATIONS = 30;
const LONGEST_TEXT = 400;               // sentences; similarity is quadratic
const STOP_WORDS = new Set(('about after also because been before being between both cannot could does each from have here '
  + 'into itself just like made make more most much must only other over same should some such than that their them then '
  + 'there these they this those through under until upon very were what when where which while will with would your').split(' '));

export function summarize(text, count) {
  const sentences = sentencesOf(text).slice(0, LONGEST_TEXT);
  const ranks = rank(sentences.map(wordsOf));
  const chosen = ranks
    .map((value, index) => ({ value, index }))
    .sort((a, b) => b.value - a.value || a.index - b.index)
    .slice(0, count)
    .map(({ index }) => index)
    .sort((a, b) => a - b);
  return { considered: sentences.length, sentences: chosen.map(index => sentences[index]) };
}

// Prose only: no code, headings, tables; links as their words.
export function sentencesOf(text) {
  return text
    .replace(/^(```|~~~)[\s\S]*?^\1.*$/gm, '')
    .replace(/^(#|\|).*$/gm, '')
    .replace(/!?\[([^\]]*)\]\([^)]*\)/g, '$1')
    .replace(/^\s*([-*+]|\d+\.)\s+/gm, '\n\n')
    .split(/\n\s*\n/)
    .flatMap(paragraph => paragraph.replace(/\s+/g, ' ').split(/(?<=[.!?])\s+(?=["'(]?\p{Lu})/u))
    .map(sentence => sentence.trim())
    .filter(sentence => sentence.split(' ').length >= 4);
}

const wordsOf = sentence => new Set((sentence.toLowerCase().match(/\p{L}{4,}/gu) ?? []).filter(word => !STOP_WORDS.has(word)));

function rank(words) {
  const size = words.length;
  const similarity = words.map((mine, i) => words.map((other, j) => (i === j ? 0 : likeness(mine, other))));
  const totals = similarity.map(row => row.reduce((sum, value) => sum + value, 0));
  let ranks = new Array(size).fill(1 / size);
  for (let iteration = 0; iteration < ITERATIONS; iteration += 1) {
    ranks = ranks.map((_, i) => {
      let votes = 0;
      for (let j = 0; j < size; j += 1) if (totals[j] > 0) votes += ranks[j] * similarity[j][i] / totals[j];
      return (1 - DAMPING) / size + DAMPING * votes;
    });
  }
  return ranks;
}

function likeness(a, b) {
  let shared = 0;
  for (const word of a) if (b.has(word)) shared += 1;
  return shared === 0 ? 0 : shared / (Math.log(a.size + 1) + Math.log(b.size + 1));
}
