"""The test database itself: the roles on it, and the application above it."""

from __future__ import annotations

import json
import urllib.request

import pytest
from django.db import connection


@pytest.mark.django_db
def test_tests_connect_as_the_app_role_to_tables_of_the_owner() -> None:
    with connection.cursor() as cursor:
        cursor.execute("select current_user, (select tableowner from pg_tables where tablename = 'django_migrations')")
        assert cursor.fetchone() == ("tollgate_app", "tollgate_owner")


def test_the_application_answers_over_http(server: str) -> None:
    with urllib.request.urlopen(f"{server}/health/ready") as response:
        assert response.status == 200
        assert json.load(response)["checks"]["database"] == "ok"
