// Where the example reads and writes.
import path from 'node:path';
import { fileURLToPath } from 'node:url';

export const project = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../../..');
export const work = path.resolve(process.env.EXAMPLE_WORK || path.join(project, '.work'));

export const shipped = path.join(project, 'kb');
export const handovers = path.join(project, 'handovers');
export const generated = path.join(work, 'kb');
export const clone = path.join(work, 'clone');
export const upstream = path.join(work, 'upstream.git');
export const database = path.join(work, 'kb.sqlite');
export const backups = path.join(work, 'backups');
export const summaries = path.join(work, 'summaries');
