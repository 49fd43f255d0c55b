// The documents of the knowledge base: shipped, generated, and those of the clone.
import { createHash } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import path from 'node:path';
import { ensurePages } from './pages.mjs';
import { clone, generated, shipped } from './places.mjs';

const SKIPPED = new Set(['.git', '.work', 'node_modules']);

// All of them, in order of path: {path, text, hash}.
export async function readDocuments() {
  await ensurePages();
  const documents = [];
  for (const [label, root] of [['kb', shipped], ['generated', generated], ['clone', clone]]) {
    for (const file of await findMarkdown(root)) {
      const text = await readFile(file, 'utf8');
      documents.push({ path: path.posix.join(label, path.relative(root, file)), text, hash: hashOf(text) });
    }
  }
  return documents;
}

export const hashOf = text => createHash('sha256').update(text).digest('hex');

async function findMarkdown(directory) {
  const files = [];
  let entries;
  try {
    entries = await readdir(directory, { withFileTypes: true });
  } catch (error) {
    if (error.code === 'ENOENT') return files;   // no clone yet
    throw error;
  }
  for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const file = path.join(directory, entry.name);
    if (entry.isDirectory() && !SKIPPED.has(entry.name)) files.push(...await findMarkdown(file));
    else if (entry.isFile() && entry.name.endsWith('.md')) files.push(file);
  }
  return files;
}
