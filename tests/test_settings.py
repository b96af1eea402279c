"""Production's settings: they start only with their secrets, warn of nothing, and every variable is written down."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings
from django.test import Client

from config import health

ROOT = Path(__file__).resolve().parent.parent

REQUIRED = {
    "SECRET_KEY": "a-long-and-random-enough-secret-for-checks-0123456789-abcdefghij",
    "ALLOWED_HOSTS": "billing.example.com",
    "DATABASE_URL": "postgresql://nobody:none@127.0.0.1:1/none",
    "REDIS_URL": "redis://127.0.0.1:1/0",
    "STRIPE_SECRET_KEY": "rk_live_" + "0" * 24,
}
READS = re.compile(
    r"""\b(?:env|environ\.Env\(\))(?:\.\w+)?\(\s*"([A-Z][A-Z0-9_]+)"  # django-environ
      | \benviron(?:\.(?:get|setdefault|pop)\(|\[)\s*"([A-Z][A-Z0-9_]+)"
      | \$\{([A-Z][A-Z0-9_]+)""",
    re.VERBOSE,
)
ASK_WHETHER_READY = """
from django.core.wsgi import get_wsgi_application
get_wsgi_application()
from django.test import Client
answer = Client().get("/health/ready", headers={"host": "billing.example.com"})
print(answer.status_code, answer.json()["checks"])
"""
#: Set by the system or by whoever runs us or our tests, not by an operator.
SURROUNDINGS = {"PATH", "CI", "CHARGES", "CHROMIUM", "TOLLGATE_SCREENSHOTS", "DJANGO_ALLOW_ASYNC_UNSAFE"}


def production(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Python in a process that has these variables and no other of ours."""
    environment = {"PATH": os.environ["PATH"], "DJANGO_SETTINGS_MODULE": "config.settings.base"} | variables
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("missing", REQUIRED)
@pytest.mark.parametrize("value", [None, ""], ids=["unset", "empty"])
def test_production_does_not_start_without(missing: str, value: str | None) -> None:
    present = {name: found for name, found in (REQUIRED | {missing: value}).items() if found is not None}
    started = production("-c", "import config.settings.base", **present)
    assert started.returncode != 0
    assert f"Set the {missing} environment variable" in started.stderr


@pytest.mark.failure(67)
@pytest.mark.parametrize("key", ["pk_test_" + "0" * 24, "sk_live_" + "0" * 24, "nonsense"])
def test_production_does_not_take_a_publishable_key_of_another_mode_than_the_secret_one(key: str) -> None:
    good = REQUIRED | {"STRIPE_PUBLISHABLE_KEY": "pk_live_" + "0" * 24}
    assert production("-c", "import config.settings.base", **good).returncode == 0
    started = production("-c", "import config.settings.base", **good | {"STRIPE_PUBLISHABLE_KEY": key})
    assert "STRIPE_PUBLISHABLE_KEY is no publishable key of STRIPE_SECRET_KEY's mode" in started.stderr


@pytest.mark.failure(67)
@pytest.mark.parametrize("key", ["pk_live_" + "0" * 24, "sk_liv_" + "0" * 24, "whsec_" + "0" * 24])
def test_production_does_not_take_another_key_for_stripes_secret_key(key: str) -> None:
    started = production("-c", "import config.settings.base", **REQUIRED | {"STRIPE_SECRET_KEY": key})
    assert started.returncode != 0
    assert "STRIPE_SECRET_KEY is no secret key" in started.stderr


@pytest.mark.parametrize("said", ["", "-1", "50 %", "0.5", "1000000", "none", "٥٠"])
def test_production_does_not_take_garbage_for_the_cap_on_price_changes(said: str) -> None:
    started = production("-c", "import config.settings.base", **REQUIRED | {"PRICE_CHANGE_CAP_PERCENT": said})
    assert "PRICE_CHANGE_CAP_PERCENT is a whole number from 0 to 999999, or off" in started.stderr


def test_the_example_with_its_required_variables_filled_starts_and_has_a_broker() -> None:
    example = dict(re.findall(r"^([A-Z][A-Z0-9_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    started = production("-c", "from config.settings import base; print(base.CELERY_BROKER_URL)", **example | REQUIRED)
    assert started.stdout.strip() == REQUIRED["REDIS_URL"], started.stderr


def test_the_deployment_check_has_no_warning_under_production_settings() -> None:
    checked = production("manage.py", "check", "--deploy", "--fail-level", "WARNING", **REQUIRED | {"DATABASE_URL": settings.DATABASE_URL})
    assert checked.returncode == 0, checked.stderr


def test_every_variable_that_is_read_is_documented_and_no_other() -> None:
    files = [*ROOT.glob("config/**/*.py"), *ROOT.glob("*/*.py"), *ROOT.glob("*/management/**/*.py"), ROOT / "Procfile"]
    read = {
        name
        for path in files
        if not {".venv", "benchmarks"} & set(path.parts)
        for match in READS.finditer(path.read_text())
        for name in match.groups()
        if name
    }
    for catalog in ROOT.glob("pricing/catalogs/*.toml"):
        read |= set(re.findall(r'^(?:stripe_price_)?setting = "([A-Z][A-Z0-9_]+)"$', catalog.read_text(), re.MULTILINE))
    documented = set(re.findall(r"^([A-Z][A-Z0-9_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert read - SURROUNDINGS == documented


def test_the_example_names_no_value_that_would_be_a_secret() -> None:
    values = dict(re.findall(r"^([A-Z][A-Z0-9_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert {name: values[name] for name in REQUIRED if name != "ALLOWED_HOSTS"} == dict.fromkeys(set(REQUIRED) - {"ALLOWED_HOSTS"}, "")


@pytest.mark.failure(67)
def test_a_live_key_is_sent_to_stripe_alone() -> None:
    started = production("-c", "import config.settings.base", **REQUIRED | {"STRIPE_API_HOST": "http://127.0.0.1:12111"})
    assert started.returncode != 0
    assert "STRIPE_API_HOST is for tests" in started.stderr


def test_an_endpoint_may_have_several_signing_secrets_and_without_one_has_none() -> None:
    code = "from config.settings import base; print(base.STRIPE_WEBHOOK_SECRETS, base.STRIPE_PLAYGROUND_WEBHOOK_SECRETS)"
    shown = production("-c", code, **REQUIRED | {"STRIPE_WEBHOOK_SECRET": "whsec_new, whsec_old", "STRIPE_PLAYGROUND_WEBHOOK_SECRET": ""})
    assert shown.stdout.strip() == "['whsec_new', 'whsec_old'] []", shown.stderr


@pytest.mark.failure(55, 76)
@pytest.mark.parametrize("value", ["whsec_new, ", " ,whsec_new", "whsec_new,,", "whsec_new, ,"])
def test_a_comma_too_many_is_no_secret_that_anybody_can_sign_with(value: str) -> None:
    code = "from config.settings import base; print(base.STRIPE_WEBHOOK_SECRETS, base.STRIPE_PLAYGROUND_WEBHOOK_SECRETS)"
    shown = production("-c", code, **REQUIRED | {"STRIPE_WEBHOOK_SECRET": value, "STRIPE_PLAYGROUND_WEBHOOK_SECRET": value})
    assert shown.stdout.strip() == "['whsec_new'] ['whsec_new']", shown.stderr


@pytest.mark.failure(67)
@pytest.mark.parametrize(("key", "mode"), [("sk_live_", True), ("rk_live_", True), ("sk_test_", False), ("rk_test_", False)])
def test_the_prefix_of_the_stripe_key_decides_between_live_and_test_mode(key: str, mode: bool) -> None:
    code = "from config.settings import base; print(base.STRIPE_LIVE_MODE)"
    shown = production("-c", code, **REQUIRED | {"STRIPE_SECRET_KEY": key + "0" * 24})
    assert shown.stdout.strip() == str(mode), shown.stderr


@pytest.mark.failure(84)
def test_forwarded_headers_are_believed_only_when_the_operator_says_so() -> None:
    code = "from config.settings import base; print(base.SECURE_PROXY_SSL_HEADER, base.ALLAUTH_TRUSTED_PROXY_COUNT)"
    assert production("-c", code, **REQUIRED).stdout.strip() == "None 0"


@pytest.mark.django_db
class TestHeaders:
    def test_pages_may_load_nothing_from_elsewhere_and_run_nothing_inline(self, client: Client) -> None:
        policy = client.get("/accounts/login/").headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy

    def test_only_the_admin_and_the_api_pages_may_evaluate(self, client: Client) -> None:
        assert "'unsafe-eval'" in client.get("/admin/login/").headers["Content-Security-Policy"]
        assert "'unsafe-eval'" not in client.get("/administrator").headers["Content-Security-Policy"]

    @pytest.mark.failure(91)
    def test_nobody_frames_us_and_addresses_stay_ours(self, client: Client) -> None:
        headers = client.get("/accounts/login/").headers
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "strict-origin-when-cross-origin"
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["X-Content-Type-Options"] == "nosniff"


class TestHealth:
    def test_alive_asks_nobody(self, client: Client) -> None:
        assert client.get("/health").json() == {"status": "ok"}

    @pytest.mark.django_db
    def test_ready_is_degraded_not_down_while_no_worker_was_seen(self, client: Client) -> None:
        answer = client.get("/health/ready")
        assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
        assert answer.json()["checks"]["worker"] == "never seen"

    @pytest.mark.django_db
    def test_ready_is_ok_after_a_worker_ran_the_beat(self, client: Client) -> None:
        health.beat()
        assert client.get("/health/ready").json() == {
            "status": "ok",
            "checks": {"database": "ok", "migrations": "ok", "settings": "ok", "cache": "ok", "worker": "ok", "jobs": "ok"},
        }

    def test_not_ready_without_a_database_and_not_ready_is_no_error_page(self) -> None:
        shown = production("-c", ASK_WHETHER_READY, **REQUIRED)
        assert shown.stdout.startswith("503 {'database': 'down"), shown.stdout + shown.stderr
        assert "'cache': 'down" in shown.stdout
