"""What `--help` of the programs that are not read by argparse prints."""

from __future__ import annotations

WRAP = """\
Usage: maintlock-wrap [options] -- COMMAND [ARG…]

Run COMMAND while holding the lease of heavy jobs: at most one of them runs at
any time. If another job has the lease, say who and stand back (exit 0), or
queue.

What to run, and as what
  -t, --task NAME         the task that this is (under npm: from maintlock.toml,
                          or the script's name)
      --lease NAME        which lease (heavy-maintenance)
      --owner TEXT        who asks (user@host); cut at 200 characters
      --reason TEXT       why (manual); cut at 200 characters
      --source S          npm, orchestrator, library or cli (detected)

When it is held
  -n, --no-wait           stand back at once (default)
  -w, --wait DURATION     queue for at most that long, or: forever
  -E, --defer-exit-code N exit code of a deferral or an elapsed wait (0)

While it runs
  -F, --exec              replace this process with COMMAND; no wrapper remains
  -o, --close             do not hand the lock's descriptor to the job
      --hold-until WHAT   what keeps the lease after the main process has ended:
                          session (default: what is left in its session), main
                          (nothing), tree (all descendants)
      --max-runtime D     stop the job after D: TERM, grace, KILL (exit 124)
      --stop-grace D      time between TERM and KILL (10s)
      --ttl D             from then on the holder counts as overdue (6h); it is
                          reported; the lease is never taken away
      --outcome FILE      write how it ended to FILE, as JSON

      --log-format F      text or json: format of maintlock's own messages on
                          stderr
  -q, --quiet             errors only
  -v, --verbose           details too
      --state-dir DIR     where the lock lives
      --config FILE       maintlock.toml to use, or: none
      --allow-network-fs  accept a filesystem whose locks may not be local
      --version, --help

Durations: 500ms 90 90s 10m 2h 1d.

Exit codes: the job's own, or 128+n for signal n; 0 (or -E) deferred; 64 usage;
70 internal error; 73 lease not available here; 77 refused for permissions; 78
bad configuration; 124 stopped by --max-runtime; 126 command not executable; 127
not found.

Examples
  maintlock-wrap -t backup -- node buildScripts/ai/backup.mjs
  maintlock-wrap -t kbSync --wait 10m -E 75 -- npm run ai:sync-kb
  "ai:backup": "maintlock-wrap -t backup -- node backup.mjs"      (package.json)
  maintlock status; maintlock history
"""

HOLD = """\
Usage: maintlock hold -t NAME [options]

Hold the lease for the program that started this one, in any language, until its
standard input closes. Prints one JSON line:

  {"event":"granted","lease","lease_id","fence","task","env":{…for children}}
  {"event":"deferred","reason_code","holder"}
  {"event":"refused","path"}            the descriptor of --fd is not this file

      --fd N              put the lock on descriptor N, which the caller has
                          opened on the lock file (read-write) and handed on:
                          then both carry it, and the death of either alone
                          frees nothing; a signal is passed on as another line,
                          {"event":"stop_requested","signal"}, and the lease
                          stays until standard input closes or the caller dies
  -t, -w, -n, -E, --lease, --owner, --reason, --source, --ttl, --hold-until,
  --outcome, --state-dir, --config, --log-format, -q, -v: as in
  maintlock-wrap --help

Closing standard input ends it as completed, or as failed if a number other
than 0, the exit code, was written there before; if the caller has died without
such a word, how its work ended is unknown. A signal ends it as stopped. What
the caller started with `env` in its session keeps the lease until it has ended.

Exit codes: 0 done, or what the caller has written; 0 (or -E) deferred; 128+n
ended by signal n; 64 70 73 77 78 as in maintlock-wrap.

Examples
  maintlock hold -t dream --wait 10m
  coproc maintlock hold -t backup; read -r answer <&"${COPROC[0]}"        (bash)
"""

TEXTS = {"maintlock-wrap": WRAP, "maintlock hold": HOLD}
