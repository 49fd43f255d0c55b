// The git repository whose history we index, and a remote one of our own with its clone.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, rename, rm } from 'node:fs/promises';
import path from 'node:path';
import { Failure } from './failure.mjs';
import { PAGES, nameOf, page } from './pages.mjs';
import { clone, project, upstream, work } from './places.mjs';
import { git, gitEnvironment } from './programs.mjs';

const COMMITS = 40;
const PAGES_PER_COMMIT = 3;
const FIRST_COMMIT_AT = 1767225600;     // 2026-01-01
const COMMIT_EVERY = 36000;             // seconds

// `named`, else $EXAMPLE_REPO, else the repository this project lives in, else one of our own.
export async function findRepository(named = process.env.EXAMPLE_REPO) {
  if (named) {
    const directory = path.resolve(named);
    if (!hasCommits(directory)) throw new Failure(`${directory} is no git repository with commits`);
    return directory;
  }
  if (hasCommits(project)) return git(project, ['rev-parse', '--show-toplevel']);
  await ensureUpstream();
  return upstream;
}

function hasCommits(directory) {
  const { error, status } = spawnSync('git', ['-C', directory, 'rev-parse', '--quiet', '--verify', 'HEAD^{commit}'],
    { stdio: 'ignore', env: gitEnvironment() });
  if (error) throw new Failure(`cannot start git: ${error.message}`, 127);
  return status === 0;
}

// A bare repository with pages of its own, a few per commit; made whole, then renamed.
async function ensureUpstream() {
  if (existsSync(upstream)) return;
  await mkdir(work, { recursive: true });
  const temporary = `${upstream}.${process.pid}`;
  await rm(temporary, { recursive: true, force: true });
  await git(work, ['init', '--quiet', '--bare', '--initial-branch=main', temporary]);
  await git(temporary, ['fast-import', '--quiet'], historyOfPages());
  await rename(temporary, upstream);
}

// A clone of it, on the branch that follows its remote; made whole, then renamed.
export async function ensureClone() {
  await ensureUpstream();
  if (existsSync(clone)) return;
  const temporary = `${clone}.${process.pid}`;
  await rm(temporary, { recursive: true, force: true });
  await git(work, ['clone', '--quiet', upstream, temporary]);
  await rename(temporary, clone);
}

// The stream for git fast-import.
function historyOfPages() {
  const data = text => `data ${Buffer.byteLength(text)}\n${text}`;
  const lines = [];
  for (let commit = 0; commit < COMMITS; commit += 1) {
    const numbers = Array.from({ length: PAGES_PER_COMMIT }, (_, index) => PAGES + commit * PAGES_PER_COMMIT + index);
    lines.push('commit refs/heads/main', `committer Example <example@localhost> ${FIRST_COMMIT_AT + commit * COMMIT_EVERY} +0000`,
      data(`Add ${numbers.map(nameOf).join(', ')}`));
    for (const number of numbers) lines.push(`M 100644 inline ${nameOf(number)}`, data(page(number)));
  }
  return `${lines.join('\n')}\n`;
}
