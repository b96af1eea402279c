"""A world a test. ``pytest analytics/tests/test_recognition.py --hypothesis-profile=soak`` lives hundreds of new histories."""

import pytest
from hypothesis import settings

from analytics.tests.world import World

settings.register_profile("soak", max_examples=300, deadline=None, print_blob=True, report_multiple_bugs=False)


@pytest.fixture
def world(db: None) -> World:
    return World.new()
