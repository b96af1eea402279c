"""Where a customer may come back to: a corpus of addresses that lead elsewhere in one reader's eyes or another's."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing import redirects

ORIGINS = ["https://ok.example", "https://app.ok.example:8443", "http://localhost:*"]

GOOD = {
    "https://ok.example": "https://ok.example/",
    "https://ok.example/": "https://ok.example/",
    "https://ok.example/done": "https://ok.example/done",
    "https://ok.example?x=1": "https://ok.example/?x=1",
    "https://ok.example#top": "https://ok.example/#top",
    "https://ok.example/done?session={CHECKOUT_SESSION_ID}&to=a%20b": "https://ok.example/done?session={CHECKOUT_SESSION_ID}&to=a%20b",
    "https://ok.example//evil.example/": "https://ok.example//evil.example/",
    "https://ok.example/@evil.example": "https://ok.example/@evil.example",
    "https://ok.example/?next=https://evil.example": "https://ok.example/?next=https://evil.example",
    "https://app.ok.example:8443/x": "https://app.ok.example:8443/x",
    "http://localhost/x": "http://localhost/x",
    "http://localhost:8000/x": "http://localhost:8000/x",
}

HOSTILE = [
    "", " ", "/", "/done", "done", "//evil.example", "///evil.example", "////evil.example", "//ok.example",
    "\\\\evil.example", "/\\evil.example",
    "https:ok.example", "https:/ok.example", "https:///ok.example", "https:////ok.example/", "https:\\\\ok.example", "https:/\\ok.example",
    "https://ok.example\\@evil.example", "https://ok.example\\.evil.example", "https://ok.example/\\evil", "https://ok.example\\",
    "https://ok.example@evil.example", "https://ok.example:@evil.example", "https://ok.example:443@evil.example/",
    "https://ok.example%40evil.example",
    "https://user@ok.example", "https://user:pass@ok.example/", "https://@ok.example", "https://:@ok.example",
    "https://evil.example@ok.example",
    "https://ok.example.evil.example", "https://ok.example.", "https://ok.example./", "https://ok.examples",
    "https://ok.example-evil.example",
    "https://ok.example%2eevil.example", "https://ok.example%2f.evil.example", "https://ok.example%00.evil.example", "https://ok.example%",
    "https://evil.example/https://ok.example", "https://evil.example?https://ok.example", "https://evil.example#https://ok.example",
    "https://evil-ok.example", "https://notok.example", "https://sub.ok.example", "https://ok.example.com", "https://okexample",
    "https://ok.example:80", "https://ok.example:443", "https://ok.example:8443", "https://ok.example:",
    "https://ok.example:/", "https://ok.example:x",
    "https://app.ok.example", "https://app.ok.example:84430", "https://app.ok.example:8443.evil.example",
    "https://app.ok.example:8443@evil.example",
    "http://ok.example", "http://ok.example/", "ftp://ok.example", "ws://ok.example", "wss://ok.example",
    "HTTPS://ok.example", "hTTps://ok.example",
    "https://OK.example", "https://ok.EXAMPLE/", "https://Ok.Example",
    "javascript:alert(1)", "JaVaScRiPt:alert(1)", "javascript://ok.example/%0aalert(1)",
    "javascript:https://ok.example", "java\nscript:alert(1)",
    "\x01javascript:alert(1)", "data:text/html,<script>alert(1)</script>", "data:;base64,PHNjcmlwdD4=",
    "vbscript:msgbox(1)", "file:///etc/passwd",
    "blob:https://ok.example/1", "view-source:https://ok.example", "about:blank", "mailto:a@ok.example", "tel:1",
    "intent://ok.example#Intent;end",
    "https://\tok.example", "https://ok.example\t.evil.example", "ht\ttps://ok.example", "https:\t//ok.example", "\thttps://ok.example",
    " https://ok.example", "https://ok.example ", "https://ok.example/ x", "https://ok .example",
    "\u00a0https://ok.example", "\ufeffhttps://ok.example",
    "https://ok.example\n", "https://ok.example\r\nSet-Cookie: a=b", "https://ok.example/\r\nX: y",
    "https://ok.example/\x00", "https://ok.example/\x7f",
    "https://ok.example/%0d%0aSet-Cookie:a=b", "https://ok.example/%0A", "https://ok.example/%00",
    "https://ok.example/%7f", "https://ok.example/%1F",
    "https://οk.example", "https://ok.exampl\u0435", "https://ｏk.example", "https://ok。example", "https://ok．example/",
    "https://ok\u2024example",
    "https://ok.example\u2044evil", "https://ok.example／evil.example", "https://ok.example\uff03@evil.example",
    "https://ok.example？@evil.example",
    "https://xn--k-9ga.example", "https://xn--ok-example-", "https://ok.xn--example-", "https://ok.example/ä",
    "https://ok.example/\u202e", "https://ok\u00ad.example",
    "https://ok.example/\u2028x", "https://ok.example/\ud800", "https://ⓞⓚ.example",
    "https://[ok.example]", "https://[::1]", "https://[::ffff:127.0.0.1]/", "https://127.0.0.1", "https://0x7f000001",
    "https://2130706433", "https://0",
    "http://localhost.evil.example", "http://localhost@evil.example", "http://localhost:8000@evil.example",
    "http://localhost:@evil.example",
    "http://localhost:0", "http://localhost:008000", "http://localhost:800000/", "http://localhost:80x",
    "http://localhost:*/", "http://localhost:",
    "http://localhost:-1", "http://localhost:8000.evil.example", "https://localhost", "http://LOCALHOST",
    "http://localhostx", "http://127.1",
    "https://ok.example<script>", "https://ok.example/<script>", 'https://ok.example/"x', "https://ok.example/`",
    "https://ok.example/^", "https://ok.example/|",
    "https://ok.example;evil.example", "https://ok.example,evil.example", "https://ok.example&evil.example",
    "https://ok.example$evil.example",
    "https://ok.example=evil.example", "https://ok.example!evil", "https://ok.example(evil)",
    "https://ok.example[evil]", "https://ok.example{evil}",
    "https://ok.example'evil", "https://ok.example*", "https://ok.example+evil", "https://ok.example~evil", "https://ok.example_evil",
    "https://ok.examplehttps://evil.example", "https://https://ok.example", "https://ok.example:https://evil.example",
    "https://?ok.example",
    "https://#ok.example", "https://", "https:", "https", ":", "://ok.example", "//ok.example@evil.example", "https&colon;//ok.example",
    "https%3A//ok.example", "https%3a%2f%2fok.example", "%68ttps://ok.example", "https://%6fk.example", "&#104;ttps://ok.example",
    "https://ok.example/" + "a" * 2_000,
]  # fmt: skip


@pytest.mark.parametrize(("url", "checked"), GOOD.items())
def test_an_allowed_origin_may_have_any_path(url: str, checked: str) -> None:
    assert redirects.check(url, origins=ORIGINS, field="success_url") == checked


@pytest.mark.failure(88)
@pytest.mark.parametrize("url", HOSTILE)
def test_a_hostile_address_is_refused_and_named_by_its_field(url: str) -> None:
    with pytest.raises(redirects.NotAllowed) as refused:
        redirects.check(url, origins=ORIGINS, field="cancel_url")
    assert refused.value.field == "cancel_url"


@pytest.mark.failure(88)
@given(st.text(max_size=60), st.sampled_from([*ORIGINS, "https://ok.example", "http://localhost:8000", "https:", "//"]))
def test_whatever_passes_leads_to_an_allowed_origin(rest: str, start: str) -> None:
    try:
        url = redirects.check(start + rest, origins=ORIGINS, field="x")
    except redirects.NotAllowed:
        return
    parts = urlsplit(url)
    assert parts.username is None
    assert (parts.scheme, parts.hostname) in {("https", "ok.example"), ("https", "app.ok.example"), ("http", "localhost")}
    assert url.isascii()
    assert url.isprintable()


def test_without_origins_nothing_is_allowed() -> None:
    with pytest.raises(redirects.NotAllowed, match="none"):
        redirects.check("https://ok.example/", origins=[], field="success_url")
