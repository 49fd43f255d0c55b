// `git log -p` as records. A record starts with RS at the start of a line, which no line of a
// patch does; its fields end with US.
export const LOG_FORMAT = '%x1e%H%x1f%an%x1f%aI%x1f%s%x1f%b%x1f';

const ADDED_CHARACTERS = 20000;         // of a commit's added text we index no more

export function parseLog(log) {
  return log.split(/^\x1e/m).filter(Boolean).map(record => {
    const [hash, author, at, subject, body, ...patch] = record.split('\x1f');
    return { hash, author, at, subject, body: body.trim(), ...parsePatch(patch.join('\x1f')) };
  });
}

function parsePatch(patch) {
  const files = [];
  const added = [];
  let room = ADDED_CHARACTERS;
  let file = null;
  let inHeader = false;
  for (const line of patch.split('\n')) {
    if (line.startsWith('diff --git ')) {
      file = { path: /^diff --git a\/(.*) b\/\1$/.exec(line)?.[1] ?? line.slice(11), added: 0, removed: 0 };
      files.push(file);
      inHeader = true;
    } else if (line.startsWith('@@ ')) {
      inHeader = false;
    } else if (file && !inHeader && line.startsWith('-')) {
      file.removed += 1;
    } else if (file && !inHeader && line.startsWith('+')) {
      file.added += 1;
      if (room > 0) added.push(line.slice(1, room));
      room -= line.length;
    }
  }
  return { files, added: added.join('\n') };
}
