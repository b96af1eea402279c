import pytest

from analytics.tests.world import World


@pytest.fixture
def world(db: None) -> World:
    return World.new()
