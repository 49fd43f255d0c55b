"""The database of the example: `python3 store OPERATION`, a JSON request on stdin, a JSON answer on stdout."""

import json
import sqlite3
import sys
from pathlib import Path

import backup
import golden
import graph
import history
import knowledge
import summaries
from schema import open_database, open_to_read

BUSY_SECONDS = 20


def main(operation: str) -> int:
    request = json.load(sys.stdin)
    path = Path(request["database"])
    needs_documents = operation in {"backup", "dream", "golden-path", "search"}
    if needs_documents and not path.exists():
        print(f"no database yet: {path}; `npm run ai:sync-kb` makes it", file=sys.stderr)
        return 1
    operations = {
        "known": knowledge.known,
        "sync": knowledge.sync,
        "search": knowledge.search,
        "backup": backup.backup,
        "dream": graph.dream,
        "golden-path": golden.golden_path,
        "heads": history.heads,
        "history": history.history,
        "summarized": summaries.summarized,
        "summaries": summaries.summaries,
    }
    try:
        database = (open_to_read if operation == "search" else open_database)(path, BUSY_SECONDS)
        answer = operations[operation](database, request)
        database.close()
    except (sqlite3.Error, LookupError, OSError) as error:
        print(f"{operation}: {path}: {error}", file=sys.stderr)
        return 1
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
