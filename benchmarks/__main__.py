"""Runs every benchmark on servers of its own (``var/bench``, which sync as production does) and prints what it measured."""

from __future__ import annotations

import os
import platform
import sys

from config import embedded


def main() -> int:
    servers = embedded.borrow("bench")
    os.environ |= {
        "DATABASE_URL": servers.database_url,
        "REDIS_URL": servers.redis_url,
        "DJANGO_SETTINGS_MODULE": "benchmarks.settings",
        "LOG_LEVEL": "WARNING",
    }
    import django

    django.setup()

    from django.core.management import call_command
    from django.db import connection

    from benchmarks import http, measure, python, rating, world
    from billing import audit

    call_command("migrate", interactive=False, verbosity=0)
    python.make_counter(servers.superuser_url)
    place = world.make()
    with connection.cursor() as cursor:
        cursor.execute("show server_version")
        [version] = cursor.fetchone()
    print(f"Python {platform.python_version()}, PostgreSQL {version} (fsync on), {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}.")
    print(f"Medians of {measure.ROUNDS} rounds in which all take turns; the clients share the CPUs with the servers.")
    print("Believe the ratios, not the absolute times.\n")
    for results in (rating.results(), python.results(place), http.results(place)):
        print(*results, sep="\n", end="\n\n")
    findings = audit.run()
    print(f"audit: {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
