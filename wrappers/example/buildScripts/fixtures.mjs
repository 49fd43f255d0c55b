// What the jobs work on, made anew in .work/: generated pages (how many may be said), a remote
// repository, and our clone of it, which `maintlock repo-sync` follows.
import { rm } from 'node:fs/promises';
import { clone, generated, upstream } from './ai/lib/places.mjs';
import { PAGES, ensurePages } from './ai/lib/pages.mjs';
import { git } from './ai/lib/programs.mjs';
import { ensureClone } from './ai/lib/repository.mjs';

const pages = Number(process.argv[2] ?? PAGES);
for (const made of [generated, clone, upstream]) await rm(made, { recursive: true, force: true });
await ensurePages(pages);
await ensureClone();
console.log(`fixtures: ${pages} pages in ${generated}`);
console.log(`fixtures: ${await git(upstream, ['rev-list', '--count', 'HEAD'])} commits in ${upstream}, cloned to ${clone}`);
