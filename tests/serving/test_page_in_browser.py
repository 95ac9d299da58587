"""`GET /` in a real browser: it streams, shows text as text, forgets its key, obeys its policy."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from infra.local.service import Service
from tests.serving.browser import Browser, needs_browser, opened
from trainer.serving import page
from trainer.serving.access import Access
from trainer.serving.api.openai_format import sse

pytestmark = needs_browser
KEY = "a-key.of_this-test"
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened() as started:
        yield started


class Scripted:
    """A server of the real page whose model says what a test wants, when the test lets it."""

    def __init__(self) -> None:
        self.chat = True
        self.pieces: list[str] = []
        self.error: str | None = None
        self.go_on = threading.Semaphore(0)  # each lets one piece come
        self.asked: list[dict[str, Any]] = []

    def app(self) -> Starlette:
        routes = [
            Route("/", page.root),
            Route("/v1/models", self._models),
            Route("/v1/completions", self._answer, methods=["POST"]),
            Route("/v1/chat/completions", self._answer, methods=["POST"]),
        ]
        access = Middleware(Access, api_key=KEY, origins=(), on_loopback=True)
        return Starlette(routes=routes, middleware=[access])

    async def _models(self, request: Request) -> Response:
        about = {"id": HOSTILE, "max_model_len": 64, "dtype": HOSTILE, "chat": self.chat}
        return JSONResponse({"data": [about]})

    async def _answer(self, request: Request) -> Response:
        self.asked.append(json.loads(await request.body()))
        return StreamingResponse(self._stream(), media_type="text/event-stream")

    async def _stream(self) -> AsyncIterator[str]:
        for piece in self.pieces:
            await asyncio.to_thread(self.go_on.acquire)
            said = {"delta": {"content": piece}} if self.chat else {"text": piece}
            yield sse({"choices": [said]})
        if self.error:
            yield sse({"error": {"message": self.error}})
            return
        yield sse({"choices": [], "usage": {"completion_tokens": len(self.pieces)}})
        yield "data: [DONE]\n\n"


@contextlib.contextmanager
def serving(scripted: Scripted) -> Iterator[str]:
    config = uvicorn.Config(scripted.app(), port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        scripted.go_on.release(100)
        server.should_exit = server.force_exit = True
        thread.join()


def with_key(browser: Browser, url: str, key: str = KEY) -> None:
    browser.open(url)
    browser.wait("document.querySelector('#key').checkVisibility()")
    assert browser.run("return document.querySelector('#send').disabled")
    browser.type("#key", f"{key}\t")
    if key == KEY:
        browser.wait("!document.querySelector('#send').disabled")


# A piece that comes is a node that is added to a text.
COUNT_PIECES = """
    window.seen = 0;
    const talk = document.querySelector('#talk');
    const count = (all) => { seen += all.filter((m) => m.target.matches(".text")).length };
    new MutationObserver(count).observe(talk, {childList: true, subtree: true});
"""
IDLE = "document.querySelector('#stop').hidden"


def test_a_chat_streams_what_the_model_says_at_420_pixels(
    browser: Browser, service: Service, client: httpx.Client
) -> None:
    messages = [{"role": "user", "content": "The sheriff"}]
    asked = {"model": "final", "messages": messages, "temperature": 0, "max_tokens": 20}
    said = client.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]
    browser.size(420, 800, dark=True)
    browser.open(f"{service.url}/")
    browser.wait("!document.querySelector('#send').disabled")
    assert browser.text("#name") == "final"
    browser.run(COUNT_PIECES)
    for field, value in (("temperature", 0), ("longest", 20)):
        browser.run(f"document.querySelector('#{field}').value = {value}")
    browser.type("#prompt", "The sheriff\ue007")  # Enter
    browser.wait(f"document.querySelectorAll('.text').length == 2 && {IDLE}")
    assert browser.text("#error") == ""
    assert browser.text(".text:not(.asked)") == said["content"]
    assert browser.run("return seen") > 3
    assert browser.text("#ended") == "20 tokens, the limit ended it"
    assert browser.run("return document.documentElement.scrollWidth") == 420
    assert browser.complaints() == []
    browser.type("#prompt", "And then?\ue007")  # the conversation so far is sent, too
    browser.wait(f"document.querySelectorAll('.text').length == 4 && {IDLE}")
    messages += [said, {"role": "user", "content": "And then?"}]
    again = client.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]
    assert (
        browser.run("return document.querySelectorAll('.text')[3].textContent")
        == (again["content"])
    )


def test_text_of_the_model_is_shown_as_it_comes_and_never_interpreted(browser: Browser) -> None:
    scripted = Scripted()
    scripted.pieces = [HOSTILE, " and", " more"]
    browser.size(1100, 800)
    with serving(scripted) as url:
        with_key(browser, url)
        browser.type("#prompt", HOSTILE)
        browser.click("#send")
        for number in range(3):  # each piece is seen while the next is not yet sent
            scripted.go_on.release()
            so_far = json.dumps("".join(scripted.pieces[: number + 1]))
            browser.wait(f"document.querySelector('.text:not(.asked)').textContent == {so_far}")
        browser.wait(IDLE)
        assert browser.text(".asked") == HOSTILE
        assert browser.text("#name") == HOSTILE
        assert browser.run("return document.title") == HOSTILE
        counts = "return ['img', 'script'].map((tag) => document.querySelectorAll(tag).length)"
        assert browser.run(counts) == [0, 1]
        (asked,) = scripted.asked
        assert asked["messages"] == [{"role": "user", "content": HOSTILE}]
        assert asked["stream"] is True


def test_key_is_asked_for_and_forgotten(browser: Browser) -> None:
    with serving(Scripted()) as url:
        with_key(browser, url, "wrong")
        browser.wait("document.querySelector('#error').textContent.includes('missing or wrong')")
        with_key(browser, url)
        kept = "return [localStorage.length, sessionStorage.length, document.cookie, location.href]"
        assert browser.run(kept) == [0, 0, "", url]
        with_key(browser, url)  # opened again, it waits for a key again
        assert browser.run("return document.querySelector('#key').value") == KEY


def test_model_without_a_template_continues_a_text_and_an_error_is_said(browser: Browser) -> None:
    scripted = Scripted()
    scripted.chat, scripted.pieces, scripted.error = False, ["noon"], "the model <b>failed</b>."
    scripted.go_on.release(2)
    with serving(scripted) as url:
        with_key(browser, url)
        browser.type("#prompt", "High ")
        browser.click("#send")
        browser.wait("document.querySelector('#error').textContent")
        assert browser.text("#error") == "the model <b>failed</b>."
        assert browser.text(".text:not(.asked)") == "noon"
        assert scripted.asked[0]["prompt"] == "High "
        assert scripted.asked[0]["max_tokens"] == 32


def test_an_answer_can_be_stopped(browser: Browser) -> None:
    scripted = Scripted()
    scripted.pieces = ["one", "never"]
    scripted.go_on.release()
    with serving(scripted) as url:
        with_key(browser, url)
        browser.type("#prompt", "Count\ue007")
        browser.wait("document.querySelector('.text:not(.asked)')?.textContent == 'one'")
        browser.click("#stop")
        browser.wait(IDLE)
        assert browser.text("#ended") == "Stopped."
        assert browser.text(".text:not(.asked)") == "one"


def test_the_policy_is_enforced(browser: Browser, service: Service) -> None:
    browser.open(f"{service.url}/")
    code = "try { document.body.innerHTML = '<b>x</b>'; return 'set' } catch (e) { return e.name }"
    assert browser.run(code) == "TypeError"
    browser.do(
        "/execute/async",
        {
            "script": "const done = arguments[0];"
            "document.addEventListener('securitypolicyviolation', (e) =>"
            " e.blockedURI.startsWith('https://example.org') && done(e.effectiveDirective));"
            "fetch('https://example.org/').catch(() => {})",
            "args": [],
        },
    )
