"""lm-eval's answer cache: stamped with what answered, refused where something else did.

The keys of `use_cache` are hashes of the requests alone, so one file given to two plans answers the
second from the first. The stamp is a table of its own in the same SQLite file. It keeps ours from
reading another's answers; it cannot keep another program from reading ours, so give each plan a
file of its own, as `steer-lm-eval` does.
"""

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from steer.evals.manifest import Manifest
from steer.evals.refusals import Refused
from steer.spec import canonical, digest

TABLE = "manifold_steer"
WAIT_S = 30.0
"""sqlitedict writes from a thread of its own, which may hold the file for a moment."""


def identity_of(manifest: Manifest, settings: Mapping[str, object]) -> dict[str, object]:
    """Return what decides an answer besides the request: all that its key in the cache leaves out.

    Args:
        manifest: of the run; of the model its weights, dtype and quantisation count, not its name
            or device.
        settings: defaults that a request does not name, such as max_gen_toks.
    """
    model = {name: manifest.model.get(name) for name in ("weights", "dtype", "quantisation")}
    return {
        "plan": manifest.plan,
        "model": model,
        "tokenizer": dict(manifest.tokenizer),
        "settings": dict(settings),
    }


def cache_path(folder: Path, identity: Mapping[str, object]) -> Path:
    """Return the beginning of the cache file for an identity; lm-eval adds `_rank0.db` to it."""
    plan = identity.get("plan")
    return folder / f"steer_{str(plan)[:12] if plan else 'base'}_{digest(identity)[:16]}"


def stamp(file: Path, table: str, identity: Mapping[str, object]) -> None:
    """Write the identity into an empty cache, or compare it with what is there.

    Args:
        file: the SQLite file.
        table: that of the answers.
        identity: see `identity_of`.

    Raises:
        Refused: wrong_cache, where the answers are another plan's or model's, or nobody's.
    """
    mine = canonical(identity)
    with closing(sqlite3.connect(file, timeout=WAIT_S, isolation_level=None)) as base:
        base.execute("BEGIN IMMEDIATE")
        try:
            found = _found(base)
            if found is None:
                _refuse_unstamped(base, file, table)
                base.execute(f"CREATE TABLE {TABLE} (identity TEXT NOT NULL)")
                base.execute(f"INSERT INTO {TABLE} VALUES (?)", (mine,))
            elif found != mine:
                raise Refused(
                    "wrong_cache",
                    f"The cache {file} holds answers of another run ({_difference(found, mine)}). "
                    "lm-eval's keys do not know of the plan, so they would be given out as this "
                    "run's. Give this run a cache of its own.",
                )
            base.execute("COMMIT")
        except BaseException:
            base.execute("ROLLBACK")
            raise


def _found(base: sqlite3.Connection) -> str | None:
    if not _has(base, TABLE):
        return None
    return str(base.execute(f"SELECT identity FROM {TABLE}").fetchone()[0])


def _has(base: sqlite3.Connection, table: str) -> bool:
    asked = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?"
    return bool(base.execute(asked, (table,)).fetchone()[0])


def _refuse_unstamped(base: sqlite3.Connection, file: Path, table: str) -> None:
    if not _has(base, table):
        return
    quoted = table.replace('"', '""')
    (n,) = base.execute(f'SELECT count(*) FROM "{quoted}"').fetchone()
    if n:
        raise Refused(
            "wrong_cache",
            f"The cache {file} holds {n} answers without a stamp, so nothing says which plan and "
            "model gave them. They would be given out as this run's. Give this run a cache of its "
            "own.",
        )


def _difference(found: str, mine: str) -> str:
    """Say in which parts two identities differ."""
    theirs, ours = json.loads(found), json.loads(mine)
    parts = [
        f"{name}: {_short(theirs.get(name))} there, {_short(ours.get(name))} here"
        for name in sorted({*theirs, *ours})
        if theirs.get(name) != ours.get(name)
    ]
    return "; ".join(parts)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
