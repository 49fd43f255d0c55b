#!/bin/sh
# maintlock at work, as a story that checks itself: `make demo`.
#
# Needs maintlock on PATH, and npm for the real thing; without npm the same story is told with plain jobs. Works in a
# temporary copy of wrappers/example with a state directory of its own, and removes both. Exit code 1 if anything was
# not as told.
set -u

here=$(cd "$(dirname -- "$0")" && pwd -P) || exit 1
patience=300                            # tenths of a second, for anything to happen
pages=100                               # of the example's knowledge base, beside those that come by git
pace=0                                  # seconds between two scenes: people read slower than this runs
bold='' dim='' good='' bad='' plain=''
if [ -t 1 ]; then
    pace=1
    if [ -z "${NO_COLOR-}" ]; then
        bold=$(printf '\033[1m') dim=$(printf '\033[2m') plain=$(printf '\033[0m')
        good=$(printf '\033[32m') bad=$(printf '\033[31m')
    fi
fi
scene=0 expected=0 failed=0 code=0 started='' orchestrator='' handovers=0


# Telling

scene() {
    sleep "$pace"
    scene=$((scene + 1))
    printf '\n\n%s%s. %s%s\n' "$bold" "$scene" "$1" "$plain"
}

tell() { printf '%s\n' "$@"; }

command_line() { printf '\n%s  $ %s%s\n' "$bold" "$1" "$plain"; }

indented() { sed 's/^/    /' "$1"; }

# try COMMAND: show it, run it, show what it said; its exit code is in $code, its words are in $said.
try() {
    command_line "$1"
    eval "$1" > "$said" 2>&1
    code=$?
    indented "$said"
    printf '%s    (exit %s)%s\n' "$dim" "$code" "$plain"
}

# show COMMAND: show it and run it on the terminal itself, as one would see it.
show() {
    command_line "$1"
    eval "$1"
}

# begin NAME COMMAND: show it and start it in the background; its pid is in $begun, what it says in a file of that name.
begin() {
    command_line "$2 &"
    eval "exec $2" > "$stage/$1" 2>&1 &
    begun=$!
    started="$started $begun"
}

# reap PID: wait for what was begun; its exit code is in $code.
reap() {
    wait "$1" 2> /dev/null
    code=$?
    running=
    for pid in $started; do
        if [ "$pid" != "$1" ]; then running="$running $pid"; fi
    done
    started=$running
}

# end NAME PID: wait for it, and show what it said.
end() {
    reap "$2"
    indented "$stage/$1"
    printf '%s    (exit %s)%s\n' "$dim" "$code" "$plain"
}


# Checking

# expect WHAT COMMAND…: the command has to succeed.
expect() {
    what=$1
    shift
    expected=$((expected + 1))
    if "$@"; then
        printf '    %s✓ %s%s\n' "$good" "$what" "$plain"
    else
        failed=$((failed + 1))
        printf '    %s✗ expected: %s%s\n' "$bad" "$what" "$plain"
    fi
}

# until_it WHAT COMMAND…: wait until the command succeeds; without that there is no story to tell.
until_it() {
    what=$1
    shift
    waited=0
    until "$@"; do
        waited=$((waited + 1))
        if [ "$waited" -gt "$patience" ]; then
            printf '\n%smaintlock demo: waited in vain: %s%s\n' "$bad" "$what" "$plain" >&2
            for words in "$stage"/*; do
                if [ -f "$words" ] && [ -s "$words" ]; then indented "$words" >&2; fi
            done
            exit 1
        fi
        sleep 0.1
    done
}

says() { grep -q -e "$1" "$said"; }

ended_with() { [ "$code" -eq "$1" ]; }

# status EXPRESSION: a value out of `maintlock status --json`.
status() { maintlock status --json | python3 -c "import json, sys; s = json.load(sys.stdin); print($1)"; }

status_is() { [ "$(status "$1")" = "$2" ]; }

# rows CONDITION: how many rows of the history meet it.
rows() {
    maintlock history --json |
        python3 -c "import json, sys; print(sum(1 for row in map(json.loads, sys.stdin) if $1))"
}

rows_are() { [ "$(rows "$1")" -eq "$2" ]; }

# health EXPRESSION: a value out of `maintlock health --json`; its exit code is no matter here.
health() { maintlock health --json | python3 -c "import json, sys; h = json.load(sys.stdin); print($1)"; }

health_is() { [ "$(health "$1")" = "$2" ]; }

daemon_pids() { health '" ".join(str(daemon["pid"]) for daemon in h["daemons"].values() if daemon["pid"])'; }

# all_up BUT: do all daemons run, none of them under the pid BUT?
all_up() { health_is "len([d for d in h['daemons'].values() if d['state'] == 'up' and d['pid'] != $1])" 3; }

# log_has NAME TEXT [TIMES]: does the log of an orchestrator have it (so many times)?
log_has() { [ "$(grep -c -F -e "$2" "$stage/$1")" -ge "${3-1}" ]; }

# one_at_a_time: did each job end before the next one began?
one_at_a_time() {
    maintlock history --json | python3 -c "
import json, sys
at_work = 0
for row in map(json.loads, sys.stdin):
    at_work += (row['event'] == 'acquired') - (row['event'] in ('released', 'stale_cleaned'))
    if at_work not in (0, 1):
        sys.exit(1)"
}

# order_of TASK TASK: did the first end before the second began?
order_of() {
    maintlock history --json | python3 -c "
import json, sys
rows = list(map(json.loads, sys.stdin))
ended = [n for n, row in enumerate(rows) if row['event'] == 'released' and row['task'] == '$1']
begun = [n for n, row in enumerate(rows) if row['event'] == 'acquired' and row['task'] == '$2']
sys.exit(not (ended and begun and ended[-1] < begun[-1]))"
}


# The stage: a copy of the example, a lock of its own, and a gate at which jobs stop in the middle of their work.

set_stage() {
    stage=$(mktemp -d "${TMPDIR:-/tmp}/maintlock-demo.XXXXXX") || exit 1
    trap leave EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
    for name in $(env | sed -n 's/^\(MAINTLOCK_[A-Z_]*\)=.*/\1/p') EXAMPLE_REPO EXAMPLE_WORK; do unset "$name"; done
    said=$stage/said
    gate=$stage/shut
    export DEMO_STAGE="$stage" DEMO_PID="$$"
    export MAINTLOCK_STATE_DIR="$stage/state" EXAMPLE_PYTHON="$stage/python"
    export EXAMPLE_CHROMA_PORT=0 EXAMPLE_BRIDGE_PORT=0 EXAMPLE_MLX_PORT=0    # any that are free
    export GIT_CONFIG_GLOBAL="$stage/gitconfig" GIT_CONFIG_NOSYSTEM=1
    printf '[user]\nname = A colleague\nemail = colleague@example.org\n' > "$GIT_CONFIG_GLOBAL"
    export npm_config_loglevel=silent npm_config_update_notifier=false
    export GIT_CEILING_DIRECTORIES="$stage"     # the example follows the repository around it: here there is none
    cat > "$stage/python" << 'END'
#!/bin/sh
# The step in which a job presses on the database. It stops here while the story looks around.
: > "$DEMO_STAGE/at-work"
while [ -e "$DEMO_STAGE/shut" ] && kill -0 "$DEMO_PID" 2> /dev/null; do sleep 0.05; done
exec python3 "$@"
END
    chmod +x "$stage/python"
    cp -R "$here/example" "$stage/project" && cp -R "$here/node" "$stage/node" || exit 1
    cd "$stage/project" && rm -rf .work || exit 1
    has_git=
    if command -v git > /dev/null; then has_git=yes; fi
    if command -v npm > /dev/null && command -v node > /dev/null && [ -n "$has_git" ]; then
        has_npm=yes
        node buildScripts/fixtures.mjs "$pages" > "$said" || exit 1
        # Without `match`, heavy processes of yours elsewhere on this machine are no part of the story.
        sed -e '/^match = /d' -e 's/^poll_interval = .*/poll_interval = "300ms"/' -e 's/^cooldown = .*/cooldown = "1s"/' \
            "$here/example/maintlock.toml" > maintlock.toml
    else
        has_npm=
        write_plain_project
    fi
}

# Jobs and daemons in place of the npm scripts where there is no npm: they count words into a database, and wait to be
# asked. Without git nobody can push, and the repository sync starts the other one each time.
write_plain_project() {
    cat > job.sh << 'END'
#!/bin/sh
"$EXAMPLE_PYTHON" count.py "$1" || exit
if [ "$1" = ai:primary-dev-sync ]; then
    maintlock-wrap -t kbSync --reason cascaded -- sh job.sh ai:sync-kb
fi
END
    cat > count.py << 'END'
import pathlib, sqlite3, sys

pages = [page.read_text(encoding="utf-8") for page in pathlib.Path("kb").glob("*.md")]
database = sqlite3.connect("words.sqlite")
with database:
    database.execute("CREATE TABLE IF NOT EXISTS words (word TEXT)")
    database.executemany("INSERT INTO words VALUES (?)", [(word,) for page in pages for word in page.split()])
(different,) = database.execute("SELECT count(DISTINCT word) FROM words").fetchone()
print(f"{sys.argv[1]}: {different} different words; done")
END
    cat > daemon.py << 'END'
import http.server

server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
print(f"ready on port {server.server_port}", flush=True)
server.serve_forever()
END
    sync='"sh", "job.sh", "ai:primary-dev-sync"'
    if [ -n "$has_git" ]; then sync='"maintlock", "repo-sync"'; fi
    cat > maintlock.toml << END
poll_interval = "300ms"
[tasks]
kbSync = { command = ["sh", "job.sh", "ai:sync-kb"], interval = "30m" }
summary = { command = ["sh", "job.sh", "ai:summarize"], interval = "10m", inbox = "handovers/*.json" }
primary-dev-sync = { command = [$sync], interval = "10m" }
dream = { command = ["sh", "job.sh", "ai:run-sandman"], interval = "1h" }
golden-path = { command = ["sh", "job.sh", "ai:golden-path"], interval = "1h" }
backup = { command = ["sh", "job.sh", "ai:backup"], interval = "1d" }
[repo_sync]
roots = [".work/clone"]
then = "kbSync"
[daemons]
chroma = { command = ["python3", "daemon.py"], cooldown = "1s" }
bridgeDaemon = { command = ["python3", "daemon.py"], cooldown = "1s" }
mlx = { command = ["python3", "daemon.py"], cooldown = "1s" }
END
    if [ -n "$has_git" ]; then
        git init --quiet --bare --initial-branch=main .work/upstream.git &&
            git clone --quiet .work/upstream.git .work/clone 2> "$said" || exit 1
        push_a_page .work/upstream.git first && git -C .work/clone pull --quiet || exit 1
    fi
}

# push_a_page REMOTE NAME: what a colleague does on a machine of her own.
push_a_page() {
    rm -rf "$stage/colleague"
    git clone --quiet "$1" "$stage/colleague" 2> "$said" || return
    printf '# %s\n\nA page that came by git.\n' "$2" > "$stage/colleague/$2.md"
    git -C "$stage/colleague" add . && git -C "$stage/colleague" commit --quiet -m "Add $2" &&
        git -C "$stage/colleague" push --quiet origin HEAD
}

# hand_over TEXT: leave a hand-over in the inbox; it gets its name when it is whole.
hand_over() {
    handovers=$((handovers + 1))
    try "echo '{\"done\": [\"$1\"]}' > handover && mv handover handovers/demo-$handovers.json"
}

# What the orchestrator is started with each time; TERM then leaves nothing of it, wherever the story ends.
orchestrate='maintlock orchestrate --log-format text --stop-jobs --stop-daemons'

shut_gate() {
    rm -f "$stage/at-work"
    : > "$gate"
}

open_gate() { rm -f "$gate"; }

is_at_work() { [ -e "$stage/at-work" ]; }

# What this ends is what the story has started: by pid, and whatever keeps the lease in its state directory.
leave() {
    exit_code=$?
    trap '' INT TERM HUP
    open_gate
    for pid in $started; do kill "$pid" 2> /dev/null; done
    if [ -n "$orchestrator" ]; then
        wait "$orchestrator" 2> /dev/null
        for pid in $(daemon_pids); do kill "$pid" 2> /dev/null; done    # it was killed itself, and they live on
    fi
    maintlock stop --yes --grace 1s > "$said" 2>&1
    for pid in $started; do wait "$pid" 2> /dev/null; done    # until they have written down how they ended
    cd / && rm -rf "$stage"
    exit "$exit_code"
}

# of SCRIPT [OPTION…]: the command that starts a script as people start it, or by hand with options of the wrapper's.
of() {
    script=$1
    shift
    case $script in
        ai:sync-kb) task=kbSync file=syncKnowledgeBase.mjs ;;
        ai:backup) task=backup file=backup.mjs ;;
        ai:run-sandman) task=dream file=runSandman.mjs ;;
        *) task=${script#ai:} file= ;;
    esac
    if [ -z "$has_npm" ]; then
        echo "maintlock-wrap -t $task$(printf ' %s' "$@" | sed 's/ $//') -- sh job.sh $script"
    elif [ $# -eq 0 ]; then
        echo "npm run $script"
    else
        echo "maintlock-wrap -t $task $* -- node buildScripts/ai/$file"
    fi
}


# The story

for tool in maintlock maintlock-wrap python3; do
    if ! command -v "$tool" > /dev/null; then
        echo "maintlock demo: $tool is not on PATH; from a checkout, type: make demo" >&2
        exit 1
    fi
done
set_stage

tell "${bold}maintlock: at most one heavy job at a time, and everybody can see whose turn it is.${plain}" '' \
    "This runs in a temporary copy of wrappers/example with a lock of its own; yours is not touched." \
    "Its jobs stop in the middle of their work until the story goes on, so that there is time to look."
if [ -z "$has_npm" ]; then
    tell '' "${bold}node, npm or git is not installed: plain jobs play the parts of the npm scripts.${plain}"
else
    tell '' "Each script in package.json is one command under the wrapper, and that is all there is to it:"
    grep '"ai:backup"' package.json
fi

scene 'A heavy job starts'
shut_gate
begin sync "$(of ai:sync-kb)"
sync=$begun
until_it 'the sync is at work' is_at_work
printf '\n'
expect 'it has the lease, as kbSync' status_is 's["holder"]["task"]' kbSync

scene 'Others stand back, and say for whom'
try "$(of ai:backup)"
expect 'the backup named who works' \
    says '^maintlock: backup deferred due to active heavy-maintenance lease: held by kbSync (owner '
expect 'standing back is no failure: exit code 0' ended_with 0
tell '' 'Who has to tell it from a success asks for an exit code:'
try "MAINTLOCK_DEFER_EXIT_CODE=75 $(of ai:run-sandman)"
expect 'exit code 75' ended_with 75

scene 'One queues instead'
begin backup "$(of ai:backup --wait 1m)"
backup=$begun
until_it 'the backup waits' status_is 's["waiters"] and s["waiters"][0]["task"]' backup
tell '' 'And anybody can look, which takes no lock and disturbs nobody:'
show 'maintlock status'
tell '' 'Now the sync may go on. The kernel wakes the next in the queue when it has ended:'
open_gate
end sync "$sync"
expect 'the sync did its work' ended_with 0
end backup "$backup"
expect 'the backup did its work' ended_with 0
expect 'one after the other' order_of kbSync backup

scene 'The wrapper is killed'
shut_gate
tell '' 'ai:run-sandman starts, and its maintlock-wrap is killed, with the signal that nobody can catch:'
begin dream "$(of ai:run-sandman)"
dream=$begun
until_it 'the dream is at work' is_at_work
wrapper=$(status 's["holder"]["pid"]')
try "kill -KILL $wrapper"
reap "$dream"
tell '' 'Nobody could clean up. But the job works on, and the lease stays with what works:'
show 'maintlock status'
expect 'it is seen as orphaned, not as free' status_is 's["state"]' orphaned
tell '' 'Whoever starts it again stands back for what is left of the first:'
try "$(of ai:run-sandman)"
expect 'the second dream stands back for the first' says 'held by survivors of dream (pids '
tell '' 'When the last of it has ended, the lease is free. There is nothing to clean up by hand:'
open_gate
until_it 'the lease is free' status_is 's["state"]' free
try "$(of ai:run-sandman)"
expect 'the next one runs' ended_with 0

scene 'What has happened'
show 'maintlock history'
expect 'three stood back, and none of them counts as a run' rows_are \
    'row["event"] == "deferred" and row["outcome"] is None' 3
expect 'the killed one is neither forgotten nor a success' rows_are \
    'row["task"] == "dream" and row["outcome"] == "lost"' 1

tell '' "${bold}So far people have started the jobs. From here on an orchestrator does.${plain}" '' \
    'maintlock.toml says when each of six heavy tasks is due, and has three daemons that are to be kept alive beside' \
    'them. In this copy the orchestrator looks every 0.3 s instead of 3 s, and restarts daemons after 1 s instead of 15 s.'

scene 'It runs by itself'
shut_gate
begin first "$orchestrate"
orchestrator=$begun
until_it 'its first job is at work' is_at_work
until_it 'its first pass is over' log_has first 'golden-path is due'
tell '' 'Three tasks have never run, and are due at once. One of them starts, the others are held back. Its log:'
indented "$stage/first"
show 'maintlock tasks'
expect 'summary runs: what is in its inbox has waited the longest' health_is 'h["tasks"]["summary"]["state"]' running
expect 'golden-path says what holds it back' health_is \
    '[h["tasks"]["golden-path"][key] for key in ("state", "blocked_by", "reason_code")]' \
    "['deferred', 'summary', 'backpressure']"

scene 'A daemon dies while a heavy job runs'
chroma=$(health 'h["daemons"]["chroma"]["pid"]')
try "kill -KILL $chroma"
until_it 'chroma is back' all_up "$chroma"
grep ' chroma ' "$stage/first" > "$said"
indented "$said"
expect 'it came back while summary had the lease' status_is 's["holder"]["task"]' summary

scene 'The orchestrator is killed'
daemons=$(daemon_pids)
try "kill -KILL $orchestrator"
reap "$orchestrator"
try 'maintlock health'
expect 'health says so, and does with its exit code' ended_with 1
expect 'it names who died' says "the orchestrator died: pid $orchestrator is gone"
expect 'the job goes on, under a supervisor of its own' status_is 's["state"], s["holder"]["task"]' 'held summary'
tell '' 'A new one finds what the first has left behind, and takes it over:'
begin second "$orchestrate"
orchestrator=$begun
until_it 'its first pass is over' log_has second 'golden-path is due'
indented "$stage/second"
expect 'the daemons are still the same' [ "$daemons" = "$(daemon_pids)" ]
expect 'all is well again' health_is 'h["status"]' healthy

scene 'What was held back runs'
if [ -n "$has_git" ]; then
    tell '' 'A colleague pushes a page just now. primary-dev-sync, which is still due, will pull it, and run kbSync inside itself.'
    push_a_page .work/upstream.git page-from-afar || exit 1
else
    tell '' 'Without git nobody can push; the job in the place of primary-dev-sync runs kbSync inside itself each time.'
fi
tell 'The job at work may end now, and the others have their turns:'
open_gate
until_it 'golden-path has run' log_has second 'golden-path ended: completed'
show 'maintlock history --limit 8'
expect 'the job that changed hands was started once, and ended well' rows_are \
    'row["task"] == "summary" and (row["event"] == "acquired" or row["outcome"] == "completed")' 2
expect 'kbSync is on record with its parent' rows_are \
    'row["event"] == "nested_finished" and row["parent_task"] == "primary-dev-sync" and row["exit_code"] == 0' 1

scene 'A hand-over comes in'
tell '' 'summary is due every ten minutes, and at once when there is something unread in its inbox:'
hand_over 'The orchestrator was killed, and nothing was started twice.'
until_it 'summary has run again' log_has second 'summary started (inbox:1)'
until_it 'summary has run again' log_has second 'summary ended: completed' 2
show 'maintlock history --task summary'
expect 'it ran because of the hand-over' rows_are \
    'row["task"] == "summary" and row["event"] == "acquired" and row["reason"] == "inbox:1"' 1

scene 'The end'
tell '' 'TERM leaves jobs and daemons to the next orchestrator. This one was told to stop them, in the midst of a job too:'
shut_gate
hand_over 'This one is not going to be read.'
until_it 'summary is at work' is_at_work
try "kill -TERM $orchestrator"
end second "$orchestrator"
expect 'it has ended in good order' ended_with 0
expect 'its job is on record as stopped' rows_are 'row["task"] == "summary" and row["outcome"] == "stopped"' 1
expect 'no daemon is left' [ -z "$(daemon_pids)" ]
expect 'the lease is free' status_is 's["state"]' free
expect 'there never were two heavy jobs at once' one_at_a_time

printf '\n'
if [ "$failed" -gt 0 ]; then
    printf '%s%s of %s expectations failed.%s\n' "$bad" "$failed" "$expected" "$plain"
    exit 1
fi
printf '%sAll %s expectations held.%s ' "$bold" "$expected" "$plain"
tell 'Next: README.md, and wrappers/example to play with.'
