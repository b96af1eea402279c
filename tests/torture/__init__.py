"""The first half of ``make soak``: clients at work through the Python face while all beneath them is killed, and a recount.

    world      a database with three products, some hot accounts that everybody works on and some that run dry
    worker     one client: writes an operation down before it sends it and once it was answered; asks again until it is
    journal    what a client wrote down
    nemesis    kills clients, connections, PostgreSQL and Valkey
    checker    holds what was written down against the ledger

Keys, bodies and answers are in the journals, so that the checker knows without the ledger what must be in it: every acknowledged
operation, once, with the amounts that were acknowledged; nothing that nobody sent; and the sum of each account. Then the ledger's audit
and the recount of the rollups.
"""

from __future__ import annotations

#: What one input token costs in the torture's products, in nanos of the wallet's unit; nothing else costs anything.
PRICE_NANOS = 1_500
WORKERS = 6
