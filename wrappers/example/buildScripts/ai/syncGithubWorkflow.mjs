// Read the history of a repository (an argument, $EXAMPLE_REPO, or the one around us) into
// the database: commits, what they touched and added, which files change together.
import '../../../node/guard.mjs?task=sync-github-workflow';
import { job } from './lib/job.mjs';
import { parseLog, LOG_FORMAT } from './lib/gitlog.mjs';
import { ask, git } from './lib/programs.mjs';
import { findRepository } from './lib/repository.mjs';

await job('ai:sync-github-workflow', async say => {
  const arguments_ = process.argv.slice(2);
  const repository = await findRepository(arguments_.find(one => !one.startsWith('-')));
  const head = await git(repository, ['rev-parse', 'HEAD']);
  const rebuild = arguments_.includes('--rebuild');
  const known = rebuild ? [] : (await ask('heads', { repository })).heads;
  const revisions = ['HEAD', ...known.map(hash => `^${hash}`)];
  const log = await git(repository, ['-c', 'core.quotePath=false', 'log', '--reverse', '-p', '-U0', '--no-color',
    '--no-ext-diff', '--no-textconv', '--no-renames', '--ignore-missing', `--format=${LOG_FORMAT}`, ...revisions, '--']);
  const commits = parseLog(log);
  say(`read the history of ${repository}, new commits: ${commits.length}`);

  const answer = await ask('history', { repository, head, commits, rebuild });
  say(`commits written: ${answer.written}, file changes: ${answer.files}; now ${answer.commits} commits, ${answer.pairs} pairs of files that change together`);
});
