"""`GET /`: a page to try the model in a browser, and KServe's `{"status": "alive"}` for others.

page.html is one file that asks this server's own routes, by relative addresses. The policy in its
headers forbids the browser everything else: scripts and styles are named by their digests, there is
no other origin, and text can't become HTML (trusted types).
Source: https://www.w3.org/TR/CSP3/, https://www.w3.org/TR/trusted-types/
"""

import base64
import functools
import hashlib
import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from trainer.serving.responses import small_json

FILE = Path(__file__).with_name("page.html")


async def root(request: Request) -> Response:
    """The page for a client that accepts HTML: browsers say so, probes do not."""
    if "text/html" not in request.headers.get("accept", ""):
        return small_json({"status": "alive"}, headers={"Vary": "Accept"})
    text, policy = _page()
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
        "Vary": "Accept",
    }
    return Response(text, headers=headers, media_type="text/html")


@functools.cache
def _page() -> tuple[str, str]:
    """The page, and its Content-Security-Policy."""
    text = FILE.read_text(encoding="utf-8")
    policy = [
        "default-src 'none'",
        f"script-src {_digests(text, 'script')}",
        f"style-src {_digests(text, 'style')}",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
    return text, "; ".join(policy)


def _digests(text: str, tag: str) -> str:
    """What a policy names the inline elements of that tag by."""
    inside = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digests = (hashlib.sha256(each.encode()).digest() for each in inside)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
