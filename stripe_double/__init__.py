"""A local double of Stripe: what the product needs of the API of ``2026-05-27.dahlia``, as one small process on the loopback.

It keeps what it is told in one SQLite file, has a clock that can be moved, makes the events that Stripe makes and delivers them signed.
No request leaves the machine and no money moves. ``README.md`` says how to run it and how to make things go wrong.
"""

API_VERSION = "2026-05-27.dahlia"
