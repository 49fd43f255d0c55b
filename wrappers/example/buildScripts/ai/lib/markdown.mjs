// Markdown as we index it: a title, chunks under their headings, links to other files.
import path from 'node:path';

const CHUNK_CHARACTERS = 1200;

export function parse(text, file) {
  const chunks = [];
  const links = new Set();
  let title = path.basename(file, '.md');
  let heading = '';
  let paragraphs = [];
  let fenced = false;

  const flush = () => {
    for (const part of pack(paragraphs)) chunks.push({ heading, text: part });
    paragraphs = [];
  };
  for (const line of text.split(/\r?\n/)) {
    if (/^(```|~~~)/.test(line)) fenced = !fenced;
    const head = !fenced && /^(#{1,6})\s+(.*?)\s*#*$/.exec(line);
    if (head) {
      flush();
      heading = head[2];
      if (head[1].length === 1) title = heading;
      continue;
    }
    for (const [, target] of line.matchAll(/\]\(([^)\s#]+\.md)(?:#[^)]*)?\)/g)) {
      if (!/^[a-z]+:/i.test(target)) links.add(path.posix.normalize(path.posix.join(path.posix.dirname(file), target)));
    }
    if (line.trim() === '' && !fenced) paragraphs.push('');
    else paragraphs.push((paragraphs.pop() ?? '') + line + '\n');
  }
  flush();
  return { title, chunks, links: [...links] };
}

// Paragraphs, put together up to the size of a chunk.
function pack(paragraphs) {
  const parts = [''];
  for (const paragraph of paragraphs.map(one => one.trim()).filter(Boolean)) {
    const last = parts.at(-1);
    if (last && last.length + paragraph.length > CHUNK_CHARACTERS) parts.push(paragraph);
    else parts[parts.length - 1] = last ? `${last}\n\n${paragraph}` : paragraph;
  }
  return parts.filter(Boolean);
}
