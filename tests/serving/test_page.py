"""`GET /`: the page to try the model, its policy, and which pages may ask."""

import asyncio
import base64
import hashlib
import re

import httpx
import pytest
from starlette.responses import JSONResponse

from trainer.serving import page
from trainer.serving.access import PAGE_HEADER, Access

BROWSERS_ACCEPT = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
SOURCE = page.FILE.read_text()


def policy_of(answer: httpx.Response) -> dict[str, str]:
    parts = answer.headers["content-security-policy"].split("; ")
    return {name: value for name, _, value in (part.partition(" ") for part in parts)}


def digest_of(tag: str) -> str:
    (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", SOURCE, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"


# --- over HTTP --------------------------------------------------------------------------


def test_a_browser_gets_the_page_under_a_policy_that_allows_only_itself(
    client: httpx.Client,
) -> None:
    answer = client.get("/", headers={"Accept": BROWSERS_ACCEPT})
    assert answer.status_code == 200
    assert answer.text == SOURCE
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["vary"] == "Accept"
    assert "access-control-allow-origin" not in answer.headers
    assert policy_of(answer) == {
        "default-src": "'none'",
        "script-src": digest_of("script"),
        "style-src": digest_of("style"),
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }


@pytest.mark.parametrize("accept", ["*/*", "application/json", ""])
def test_a_probe_gets_what_it_got_before(client: httpx.Client, accept: str) -> None:
    answer = client.get("/", headers={"Accept": accept})
    assert answer.json() == {"status": "alive"}
    assert "content-security-policy" not in answer.headers


def test_a_rebound_name_does_not_get_the_page(client: httpx.Client) -> None:
    asked = {"Accept": BROWSERS_ACCEPT, "Host": "evil.example"}
    assert client.get("/", headers=asked).status_code == 403


def test_page_names_no_address_but_relative_ones() -> None:
    assert not re.findall(r"https?:|wss?:|\burl\(|@import|\b(?:src|href|action)\s*=", SOURCE)
    asked = re.findall(r"""["'](/?/?[\w.:-]*v1/[^"']*)""", SOURCE)
    assert sorted(asked) == ["v1/chat/completions", "v1/completions", "v1/models"]


def test_page_keeps_nothing_and_makes_no_html_of_text() -> None:
    forbidden = "innerHTML outerHTML insertAdjacentHTML document.write eval( setAttribute "
    forbidden += "DOMParser localStorage sessionStorage indexedDB document.cookie"
    assert [word for word in forbidden.split() if word in SOURCE] == []
    # The policy's digests allow no handler and no style in an attribute.
    assert not re.findall(r"<[^>]*\s(?:on\w+|style)\s*=", SOURCE)


# --- who may ask ------------------------------------------------------------------------


def origin_status(on_loopback: bool, **headers: str) -> int:
    """What a POST of a page at https://tales.example.org gets, behind KServe's rewritten Host."""
    app = Access(JSONResponse({}), api_key="", origins=(), on_loopback=on_loopback)
    host = "localhost:8080" if on_loopback else "tales-predictor.default.svc.cluster.local"
    sent = {"Host": host, "Origin": "https://tales.example.org"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}

    async def ask() -> int:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
            return (await http.post("/v1/completions", headers=sent)).status_code

    return asyncio.run(ask())


OWN = {PAGE_HEADER: "1"}


def test_own_page_may_ask_where_a_gateway_rewrote_host() -> None:
    assert origin_status(False, **OWN) == 200
    assert origin_status(False, **OWN, Sec_Fetch_Site="same-origin") == 200
    assert f'"{PAGE_HEADER}": "1"' in SOURCE


def test_other_pages_may_not() -> None:
    assert origin_status(False) == 403
    assert origin_status(False, Sec_Fetch_Site="same-origin") == 403
    assert origin_status(False, **OWN, Sec_Fetch_Site="cross-site") == 403
    assert origin_status(False, **OWN, Sec_Fetch_Site="same-site") == 403
    assert origin_status(True, **OWN) == 403  # nothing rewrites Host on this machine
