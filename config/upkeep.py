"""The database's upkeep: dead rows out, and the planner's figures anew. Autovacuum does it by need; this once a week, whole."""

from __future__ import annotations

from django.db import connection

from config import roles


def vacuum() -> int:
    """VACUUM (ANALYZE) of every table of ours, outside of a transaction; returns how many. Reads and writes go on meanwhile."""
    with connection.cursor() as cursor:
        cursor.execute(roles.MAY_BE_OWNER, [roles.OWNER])
        as_owner = cursor.fetchone() == (True,)
        cursor.execute("select clock_timestamp()")
        [since] = cursor.fetchone()
        try:
            cursor.execute("set statement_timeout = 0")
            if as_owner:
                cursor.execute(f"set role {roles.OWNER}")
            cursor.execute("vacuum (analyze, skip_database_stats)")
        finally:
            cursor.execute("reset role")
            cursor.execute("reset statement_timeout")
        cursor.execute("select count(*) from pg_stat_user_tables where schemaname = 'public' and last_vacuum >= %s", [since])
        [count] = cursor.fetchone()
        return int(count)
