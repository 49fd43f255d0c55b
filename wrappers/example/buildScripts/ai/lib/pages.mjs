// More documents than anybody would ship: a few hundred Markdown pages, the same ones each
// time, so that the jobs have something to do.
import { existsSync } from 'node:fs';
import { mkdir, rename, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { generated, work } from './places.mjs';

export const PAGES = 800;
const SECTIONS = 6;
const PARAGRAPHS = 3;
const SENTENCES = 5;

const TOPICS = {
  storage: 'page segment checkpoint journal vacuum index replica shard compaction snapshot extent inode',
  network: 'socket packet handshake proxy latency router certificate stream payload gateway timeout datagram',
  scheduling: 'queue cadence interval deadline backlog priority worker slot starvation fairness throttle poll',
  memory: 'cache arena allocation eviction pressure pagefault working resident footprint swap buffer leak',
  search: 'token posting ranking query stemmer relevance corpus snippet embedding vector recall synonym',
  graph: 'node edge cluster centrality neighbour weight path traversal community component hub degree',
  release: 'branch changelog version pipeline artifact rollback canary approval merge hotfix milestone tag',
  testing: 'fixture assertion regression coverage harness mutation oracle flake property baseline probe replay',
  security: 'credential secret rotation audit policy sandbox privilege signature vault scope revocation grant',
  observability: 'metric counter histogram alert dashboard trace sample label scrape threshold incident panel',
  language: 'prompt completion context model summary sentence paragraph dialogue token instruction template reply',
  operations: 'runbook handover maintenance restart failover capacity outage shift escalation ticket rota drill',
};

const TEMPLATES = [
  'The {a} is checked against the {b} before any {c} is written.',
  'When the {a} grows, the {b} has to wait until its {c} is complete.',
  'A {a} without a {b} is reported, and its {c} stays as it was.',
  'Each {a} carries its own {b}, so that one broken {c} does not stop the others.',
  'We measured the {a} during a long {b} and found the {c} to be the limit.',
  'Keep the {a} small: every {b} reads it again, and the {c} pays for that.',
  'If the {a} is missing, rebuild it from the {b}; the {c} is not lost.',
  'The old {a} was replaced because its {b} could not follow the {c}.',
  'Two writers on one {a} spoil the {b}, whatever the {c} promises.',
  'After a crash the {a} is compared with the {b}, and the newer {c} wins.',
  'The {a} of the night run shows which {b} touched the {c} last.',
  'Ask for the {a} first; a {b} that guesses will end in a stale {c}.',
];

// A small deterministic generator (mulberry32): the same pages on every machine.
function randomFrom(seed) {
  let state = seed;
  return limit => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) % limit;
  };
}

export const nameOf = number => `note-${String(number).padStart(3, '0')}.md`;

// The text of a page; there are more of them than PAGES.
export function page(number) {
  const random = randomFrom(number);
  const pick = list => list[random(list.length)];
  const topics = Object.keys(TOPICS);
  const [main, other] = [topics[number % topics.length], pick(topics)];
  const words = `${TOPICS[main]} ${TOPICS[main]} ${TOPICS[other]}`.split(' ');
  const sentence = () => pick(TEMPLATES).replace(/\{[abc]\}/g, () => `${pick(words)} ${pick(words)}`);

  const lines = [`# Note ${number}: ${main} and ${other}`, ''];
  for (let section = 1; section <= SECTIONS; section += 1) {
    lines.push(`## ${section}. The ${pick(words)} ${pick(words)}`, '');
    for (let paragraph = 0; paragraph < PARAGRAPHS; paragraph += 1) {
      lines.push(Array.from({ length: SENTENCES }, sentence).join(' '), '');
    }
  }
  const related = [random(PAGES), random(PAGES), (number + topics.length) % PAGES].filter(one => one !== number);
  lines.push('## Related', '', ...related.map(one => `- [Note ${one}](${nameOf(one)})`), '');
  return lines.join('\n');
}

// The pages are there afterwards; written whole, then renamed, whoever else does the same.
export async function ensurePages(count = PAGES) {
  if (existsSync(generated)) return false;
  const temporary = path.join(work, `kb.${process.pid}`);
  await rm(temporary, { recursive: true, force: true });
  await mkdir(temporary, { recursive: true });
  for (let number = 0; number < count; number += 1) await writeFile(path.join(temporary, nameOf(number)), page(number));
  try {
    await rename(temporary, generated);
  } catch (error) {
    await rm(temporary, { recursive: true });
    if (error.code !== 'ENOTEMPTY' && error.code !== 'EEXIST') throw error;   // somebody else was first
  }
  return true;
}
