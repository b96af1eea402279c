"""How long Hypothesis looks: ``pytest billing/tests/test_machine.py --hypothesis-profile=soak`` lives thousands of new lives."""

from hypothesis import settings

from billing.tests.selling import double, shop  # noqa: F401 (fixtures)

settings.register_profile("soak", max_examples=3_000, stateful_step_count=80, deadline=None, print_blob=True, report_multiple_bugs=False)
