"""Bugs to plant: each is one small edit that a hurried change could make, and the tests that must notice it.

``make mutants`` plants them one at a time in a copy of the tree and runs those tests; a bug that they do not notice is a test that is
missing. ``tests/test_mutants.py`` keeps the edits applicable: ``find`` is the shortest text that occurs once in its file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class DoesNotApply(Exception):
    """What a mutant replaces is not there, or more than once: the code has moved on, and the mutant must follow."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """``find`` in ``file`` becomes ``replace``, and one of ``tests`` (pytest's arguments) must fail."""

    name: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]

    def plant(self, source: str) -> str:
        """The file's text with the bug. :raises DoesNotApply: ``find`` does not occur exactly once."""
        if source.count(self.find) != 1:
            raise DoesNotApply(f"{self.name}: the text occurs {source.count(self.find)} times in {self.file}, expected once:\n{self.find}")
        return source.replace(self.find, self.replace)


VERBS = "billing/tests/test_ledger.py"
SETS = "billing/tests/test_settle.py"
REFUNDS = "billing/tests/test_refunds.py"
CALENDAR = "billing/tests/test_calendar.py"
LIVES = "billing/tests/test_machine.py"
RATING = "pricing/tests/test_rating.py"
HOT_PATH = "metering/tests/test_api.py"
CROWD = "metering/tests/test_concurrency.py"
LIMITS = "metering/tests/test_counters.py"
INBOX = "billing/tests/test_stripe_inbox.py"
PAYMENTS = "billing/tests/test_stripe_payments.py"
PLANS = "billing/tests/test_stripe_subscriptions.py"
RECEIVER = "billing/tests/test_stripe_receiver.py"

MUTANTS: tuple[Mutant, ...] = (
    # Quantities, prices and keys, in Python.
    Mutant(
        "cost is rounded down", "pricing/rating.py",
        "cost_nanos = -(-total // table.denominator)",
        "cost_nanos = total // table.denominator", (RATING,),
    ),
    Mutant(
        "price is rounded down to the quantum", "pricing/rating.py",
        "price_nanos = -(-numerator // (denominator * quantum)) * quantum",
        "price_nanos = numerator // (denominator * quantum) * quantum", (RATING,),
    ),
    Mutant(
        "each component is rounded up", "pricing/rating.py",
        "total += quantity * found[0]",
        "total += -(-quantity * found[0] // table.denominator) * table.denominator", (RATING,),
    ),
    Mutant(
        "price is made of the rounded cost", "pricing/rating.py",
        "_charge(card, model, quantities, total, table.denominator)\n        quantum",
        "_charge(card, model, quantities, cost_nanos * table.denominator, table.denominator)\n        quantum", (RATING,),
    ),
    Mutant(
        "component without a price is free", "pricing/rating.py",
        "elif quantity or component not in _KNOWN:",
        "elif component not in _KNOWN:", (RATING,),
    ),
    Mutant(
        "cached tokens count twice", "pricing/provider_usage.py",
        '_rest(f"{incoming}_tokens", whole_input, cached, written, heard)',
        '_rest(f"{incoming}_tokens", whole_input, written, heard)', ("pricing/tests/test_provider_usage.py",),
    ),
    Mutant(
        "price of an earlier date is kept", "pricing/catalog.py",
        "stretch = bisect_right(self.turns, at)",
        "stretch = 0", ("pricing/tests/test_catalog.py",),
    ),
    Mutant(
        "earlier version of a rate card is used", "pricing/catalog.py",
        "return self.versions[position - 1]",
        "return self.versions[0]", ("pricing/tests/test_catalog.py",),
    ),
    Mutant(
        "event is priced by today's price book", "metering/usage.py",
        "book = _book(event.model, event.at, event.service_level)",
        "book = _book(event.model, now, event.service_level)", (HOT_PATH,),
    ),
    Mutant(
        "event is priced by today's rate card", "metering/usage.py",
        "card = _card(account, allowed, event.model, event.at, rate_card)",
        "card = _card(account, allowed, event.model, now, rate_card)", (HOT_PATH,),
    ),
    Mutant(
        "capture is priced by today's price book", "metering/usage.py",
        "book = catalog.book_of_rows(model=model, row_ids=price_ids or ())",
        "book = catalog.price_book(model=model, at=datetime.now(UTC))", (HOT_PATH,),
    ),
    Mutant(
        "fingerprint ignores quantities", "metering/usage.py",
        '"quantities": {name: quantity for name, quantity in ask.quantities.items() if quantity},\n',
        "", (HOT_PATH,),
    ),
    Mutant(
        "keys of two parts run together", "billing/ledger.py",
        'b"%d:%s" % (len(part.encode()), part.encode())',
        "part.encode()", (VERBS,),
    ),
    # The verbs of the ledger, in SQL.
    Mutant(
        "lock is dropped", "billing/sql/ledger.sql",
        "  perform pg_advisory_xact_lock(p_account);\n",
        "", (CROWD,),
    ),
    Mutant(
        "verdict comes before the key", "billing/sql/ledger.sql",
        "    elsif f.pending then",
        "    elsif p_refusal is not null then\n      said.outcome := 'refused';\n      said.state := p_refusal;\n      return said;\n"
        "    elsif f.pending then", (VERBS,),
    ),
    Mutant(
        "authorize forgets what is held", "billing/sql/ledger.sql",
        "w.balance - w.held < greatest(p_hold, p_minimum)",
        "w.balance < greatest(p_hold, p_minimum)", (VERBS,),
    ),
    Mutant(
        "usual authorize forgets what is held", "billing/sql/ledger.sql",
        "v.balance - v.held >= greatest(p_hold, p_minimum)",
        "v.balance >= greatest(p_hold, p_minimum)", (VERBS,),
    ),
    Mutant(
        "usual authorize looks for no stop", "billing/sql/ledger.sql",
        "not s.stopped and p_refusal",
        "p_refusal", (VERBS,),
    ),
    Mutant(
        "usual capture burns the youngest grant", "billing/sql/ledger.sql",
        "order by c.priority, c.expires_at, c.id limit 1",
        "order by c.id desc limit 1", (VERBS,),
    ),
    Mutant(
        "usual capture takes what other holds keep", "billing/sql/ledger.sql",
        "p_price <= least(g.remaining, v.balance - v.held + o.held)",
        "p_price <= g.remaining", (VERBS,),
    ),
    Mutant(
        "usual capture charges above a hold that caps", "billing/sql/ledger.sql",
        " and (p_price <= o.hold or p_overage = 'charge') as usual",
        " as usual", (VERBS,),
    ),
    Mutant(
        "usual capture counts no cost", "billing/sql/ledger.sql",
        "    if f.counted then",
        "    if false then", (LIMITS,),
    ),
    Mutant(
        "usual capture leaves the cash", "billing/sql/ledger.sql",
        "case when g.cash_nanos = 0 then 0 else",
        "case when true then 0 else", (VERBS,),
    ),
    Mutant(
        "debt does not refuse a hold of nothing", "billing/sql/ledger.sql",
        "case when w.debt > 0 and not p_in_debt then 'debt' when w.balance - w.held < greatest",
        "case when w.balance - w.held < greatest", (VERBS,),
    ),
    Mutant(
        "captured authorization stays open", "billing/sql/ledger.sql",
        "  delete from open_authorization where account_id = a.account_id and id = a.id;\n",
        "", (VERBS,),
    ),
    Mutant(
        "what has ended can be ended otherwise", "billing/sql/ledger.sql",
        "u.outcome = p_outcome and (p_quantities is null or u.quantities = p_quantities)",
        "true", (VERBS,),
    ),
    Mutant(
        "hold is not given back under capture", "billing/sql/ledger.sql",
        "w.held := w.held - a.held;\n    u.first_seq",
        "w.held := w.held - least(a.held, u.price_nanos);\n    u.first_seq", (VERBS,),
    ),
    Mutant(
        "cap charges everything", "billing/sql/ledger.sql",
        "then least(p_price, a.hold)",
        "then p_price", (VERBS,),
    ),
    Mutant(
        "reject refuses a price equal to the hold", "billing/sql/ledger.sql",
        "if p_price > a.hold and",
        "if p_price >= a.hold and", (VERBS,),
    ),
    Mutant(
        "charge takes what other holds keep", "billing/sql/ledger.sql",
        "least(p_price, greatest(w.balance - w.held, 0))",
        "least(p_price, w.balance)", (VERBS,),
    ),
    Mutant(
        "burn order ignores priority", "billing/sql/ledger.sql",
        "order by c.priority, c.expires_at, c.id\n  loop\n    exit",
        "order by c.expires_at, c.id\n  loop\n    exit", (VERBS,),
    ),
    Mutant(
        "burn order ignores expiry", "billing/sql/ledger.sql",
        "order by c.priority, c.expires_at, c.id\n  loop\n    exit",
        "order by c.priority, c.id\n  loop\n    exit", (VERBS,),
    ),
    Mutant(
        "holds cover the back of the queue", "billing/sql/calendar.sql",
        "order by c.priority, c.expires_at, c.id\n      loop\n        v_free",
        "order by c.priority desc, c.expires_at desc, c.id desc\n      loop\n        v_free", (LIVES,),
    ),
    Mutant(
        "expiry takes what holds cover", "billing/sql/calendar.sql",
        "v_free := g.remaining - greatest(0, least(g.remaining, w.held - v_before));",
        "v_free := g.remaining;", (VERBS,),
    ),
    Mutant(
        "what a hold leaves of an expired grant stays", "billing/sql/ledger.sql",
        "    w := ledger_due(w);\n  end if;\n  update wallet",
        "    null;\n  end if;\n  update wallet", (VERBS,),
    ),
    Mutant(
        "expired credits are spent first", "billing/sql/ledger.sql",
        "    w := ledger_due(w);\n    w.cash_nanos := 0;",
        "    w.cash_nanos := 0;", (VERBS,),
    ),
    Mutant(
        "debt is not repaid", "billing/sql/ledger.sql",
        "if w.debt > 0 and w.balance > w.held then",
        "if false then", (VERBS,),
    ),
    Mutant(
        "adjustment takes what is held", "billing/sql/ledger.sql",
        "if w.balance - w.held < p_amount then",
        "if w.balance < p_amount then", (VERBS,),
    ),
    Mutant(
        "one payment is granted under every key", "billing/sql/ledger.sql",
        "where account_id = p_account and source = p_source and source_key = p_source_key)",
        "where false)", (VERBS,),
    ),
    Mutant(
        "reversal keeps debt that was repaid", "billing/sql/ledger.sql",
        "if v_owed > v_amount then",
        "if false then", (VERBS,),
    ),
    Mutant(
        "record is reversed under every key", "billing/sql/ledger.sql",
        "where account_id = p_account and verb = 'reverse' and target = p_usage)",
        "where false)", (VERBS,),
    ),
    Mutant(
        "cash of the parts is not the whole", "billing/sql/ledger.sql",
        "v_cash := share(g.cash_nanos, v_gone - p_amount, g.granted) - share(g.cash_nanos, v_gone, g.granted);",
        "v_cash := share(g.cash_nanos, -p_amount, g.granted);", (VERBS,),
    ),
    Mutant(
        "another account's hold can be released", "billing/sql/ledger.sql",
        "  a := usage_unfinished(p_account, p_id, v_now);\n  if a.id is null then\n"
        "    return usage_settled(p_account, p_id, 'released', null);",
        "  select * into a from open_authorization where id = p_id;\n  if a.id is null then\n"
        "    return usage_settled(p_account, p_id, 'released', null);", (LIVES,),
    ),
    Mutant(
        "hold that timed out is over at once", "billing/sql/ledger.sql",
        "    if usage_end(a) <= p_now - interval '7 days' then\n      select * into a",
        "    if true then\n      select * into a", (VERBS,),
    ),
    # Refunds and the calendar.
    Mutant(
        "refund forgets what it took before", "billing/sql/refunds.sql",
        "share(r.granted, p_refunded, p_paid) - r.refunded",
        "share(r.granted, p_refunded, p_paid)", (REFUNDS,),
    ),
    Mutant(
        "refund takes what holds cover", "billing/sql/refunds.sql",
        "v_part := least(v_left, ledger_uncovered(w, g));",
        "v_part := least(v_left, g.remaining);", (REFUNDS,),
    ),
    Mutant(
        "refund leaves what rolled over", "billing/sql/refunds.sql",
        "and (g.id = r.id or g.root_id = r.id)",
        "and g.id = r.id", (REFUNDS,),
    ),
    Mutant(
        "rollover has no cap", "billing/sql/calendar.sql",
        "v_rolled bigint := least(p_amount, greatest(0, v_room));",
        "v_rolled bigint := p_amount;", (CALENDAR,),
    ),
    Mutant(
        "rollover comes before expiry", "billing/sql/calendar.sql",
        "foreach v_rolls in array array[false, true] loop",
        "foreach v_rolls in array array[true, false] loop", (CALENDAR,),
    ),
    Mutant(
        "late grant begins now", "billing/sql/calendar.sql",
        "w := ledger_expire(ledger_grant_due(w, s, v_at), v_at);",
        "w := ledger_expire(ledger_grant_due(w, s, w.now), v_at);", (CALENDAR,),
    ),
    Mutant(
        "months are counted from the last one", "billing/sql/tables.sql",
        "(p_anchor at time zone 'UTC' + make_interval(months => p_months)) at time zone 'UTC'",
        "case when p_months > 1 then anniversary(p_anchor, p_months - 1) + interval '1 month'"
        " else p_anchor + make_interval(months => p_months) end",
        (CALENDAR,),
    ),
    Mutant(
        "what comes back overdue stays", "billing/sql/ledger.sql",
        "w.due_at := ledger_sooner(w.due_at, g.expires_at);\n  end if;",
        "null;\n  end if;", (REFUNDS,),
    ),
    Mutant(
        "freeze takes what holds cover", "billing/sql/refunds.sql",
        "v_part := ledger_uncovered(w, g);\n    if v_part > 0 then\n      w := ledger_move(w, g, 'freeze'",
        "v_part := g.remaining;\n    if v_part > 0 then\n      w := ledger_move(w, g, 'freeze'", (REFUNDS,),
    ),
    Mutant(
        "won dispute gives back less than was frozen", "billing/sql/refunds.sql",
        "ledger_move(w, g, 'unfreeze', g.frozen, 0, v_now)",
        "ledger_move(w, g, 'unfreeze', (g.frozen + 1) / 2, 0, v_now)", (REFUNDS,),
    ),
    Mutant(
        "freeze closes a grant that is frozen whole", "billing/sql/ledger.sql",
        "(remaining + p_amount = 0 and frozen = v_thawed)",
        "(remaining + p_amount = 0)", (REFUNDS,),
    ),
    # Limits.
    Mutant(
        "limit lets one more through", "billing/sql/counters.sql",
        "v_used + l.amount <= l.allowed",
        "v_used <= l.allowed", (LIMITS,),
    ),
    Mutant(
        "limit in shadow refuses", "billing/sql/counters.sql",
        "not l.enforced or v_used",
        "v_used", ("metering/tests/test_limits.py",),
    ),
    Mutant(
        "open work costs nothing yet", "billing/sql/counters.sql",
        "v_used := c.used + case when l.layer = 'cost' then s.open_cost_nanos else 0 end;",
        "v_used := c.used;", (LIMITS,),
    ),
    Mutant(
        "released work stays counted", "billing/sql/ledger.sql",
        "usage_count(a.account_id, a.created_at, 0, 0, a.counts, case a.state when 'timed_out' then 0 else -1 end)",
        "usage_count(a.account_id, a.created_at, 0, 0, a.counts, 0)", (LIMITS,),
    ),
    Mutant(
        "window that is over goes on", "billing/sql/counters.sql",
        "if found and p_now < c.window_end then",
        "if found then", (LIMITS,),
    ),
    Mutant(
        "one object more than the plan allows", "billing/sql/counters.sql",
        "p_enforced and said.used >= p_allowed",
        "p_enforced and said.used > p_allowed", (LIMITS,),
    ),
    # A set of events.
    Mutant(
        "set is settled without its accounts' locks", "billing/sql/settle.sql",
        "perform ledger_wait(account) from",
        "perform account from", (CROWD,),
    ),
    Mutant(
        "set takes what holds keep", "billing/sql/settle.sql",
        "least(e.upto, w.balance - w.held, g.upto)",
        "least(e.upto, w.balance, g.upto)", (SETS,),
    ),
    Mutant(
        "set burns the oldest grants first", "billing/sql/settle.sql",
        "order by g.priority, g.expires_at, g.id) as upto",
        "order by g.id) as upto", (SETS,),
    ),
    Mutant(
        "set burns what has expired", "billing/sql/settle.sql",
        "(v_missing or v_due) is not true",
        "v_missing is not true", (SETS,),
    ),
    Mutant(
        "event that is twice in a set counts twice", "billing/sql/settle.sql",
        "e.nth = 1 and u.found is null",
        "u.found is null", (SETS,),
    ),
    # What the database refuses, whoever asks.
    Mutant(
        "entries can be changed", "billing/sql/tables.sql",
        "create trigger append_only before update or delete on ledger_entry for each row execute function refuse_change();\n",
        "", ("billing/tests/test_guards.py",),
    ),
    Mutant(
        "entries can be truncated", "billing/sql/tables.sql",
        "foreach v_table in array array['usage_record', 'usage_rating', 'ledger_entry', ",
        "foreach v_table in array array['usage_record', 'usage_rating', ", ("billing/tests/test_guards.py",),
    ),
    Mutant(
        "balance changes without an entry", "billing/sql/tables.sql",
        "and e.balance_after = new.balance and e.debt_after = new.debt)",
        ")", ("billing/tests/test_guards.py",),
    ),
    Mutant(
        "tenants see every ledger", "billing/sql/tenancy.sql",
        "    execute format('alter table %I enable row level security', v_table);\n",
        "", ("billing/tests/test_tenancy.py",),
    ),
    Mutant(
        "tenants see every account", "accounts/sql/tenancy.sql",
        "to authenticated using (id in (select visible_account_ids()));",
        "to authenticated using (true);", ("accounts/tests/test_tenancy.py",),
    ),
    # What comes in from Stripe.
    Mutant(
        "Stripe: a signature of the future is good", "billing/stripe_receiver.py",
        "abs(now.timestamp() - signed_at)",
        "now.timestamp() - signed_at", (RECEIVER,),
    ),
    Mutant(
        "Stripe: an event of the other mode is worked", "billing/stripe_receiver.py",
        "elif event.livemode != settings.STRIPE_LIVE_MODE:",
        "elif event.livemode is None:", (RECEIVER,),
    ),
    Mutant(
        "Stripe: a comma too many is a secret", "config/settings/base.py",
        'for each in env.list("STRIPE_WEBHOOK_SECRET", default=[]) if (secret := each.strip())]',
        'for each in env.list("STRIPE_WEBHOOK_SECRET", default=[]) if (secret := each.strip()) or True]', ("tests/test_settings.py",),
    ),
    Mutant(
        "Stripe: an event is done before its effect", "billing/stripe_inbox.py",
        "        with transaction.atomic():\n            state, reason = effect(now, read_number)\n",
        '        _finish(event, State.DONE, "", now)\n'
        "        with transaction.atomic():\n            state, reason = effect(now, read_number)\n", (INBOX,),
    ),
    Mutant(
        "Stripe: an event is worked by several at once", "billing/stripe_inbox.py",
        "event.next_attempt_at = now + LEASE",
        "event.next_attempt_at = now", (INBOX,),
    ),
    Mutant(
        "Stripe: effects for one customer do not wait for each other", "billing/stripe_inbox.py",
        '.select_for_update(of=("self",))',
        "", (INBOX,),
    ),
    Mutant(
        "Stripe: what Stripe has not is passed over", "billing/stripe_inbox.py",
        '_finish(event, State.QUARANTINED, f"Stripe has not',
        '_finish(event, State.IGNORED, f"Stripe has not', (INBOX,),
    ),
    Mutant(
        "Stripe: the older read of a payment wins", "billing/stripe_payments.py",
        " or known.read_number >= read_number)",
        ")", (INBOX,),
    ),
    Mutant(
        "Stripe: the older read of a subscription wins", "billing/stripe_subscriptions.py",
        " or known.read_number >= read_number)",
        ")", (PLANS,),
    ),
    Mutant(
        "Stripe: a subscription that ended comes back", "billing/stripe_subscriptions.py",
        "known.status in ENDED or ",
        "", (PLANS,),
    ),
    Mutant(
        "Stripe: a pack is granted for each event", "billing/stripe_payments.py",
        "        source_key=truth.id,\n",
        '        source_key=f"{truth.id}:{id(truth)}",\n', (PAYMENTS,),
    ),
    Mutant(
        "Stripe: a pack is granted by an invoice without its payment", "billing/stripe_api.py",
        'if found["status"] == "paid" and any(',
        'if found["status"] == "draft" and any(', (PAYMENTS,),
    ),
    Mutant(
        "Stripe: what is not paid yet is granted", "billing/stripe_payments.py",
        '    if not truth.is_paid:\n        return ""\n',
        "", (PAYMENTS,),
    ),
    Mutant(
        "Stripe: what was paid is not compared with what was due", "billing/stripe_payments.py",
        "    if truth.due != truth.paid:\n",
        "    if truth.due is None:\n", (PAYMENTS,),
    ),
    Mutant(
        "Stripe: a refund is told by itself and not as the sum so far", "billing/stripe_payments.py",
        "            refunded=refunded,\n",
        "            refunded=refunded - lot.refunded * truth.paid // lot.granted,\n", (PAYMENTS,),
    ),
)  # fmt: skip
