"""S3 as a real HTTP server on loopback, empty when it begins."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import httpx
from moto.core.base_backend import BackendDict
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.server import ThreadedMotoServer
from werkzeug.serving import WSGIRequestHandler, make_server


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Serve while the block runs; yields the URL."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        # All servers of a process share their buckets: another test's would still be there.
        httpx.post(f"{url}/moto-api/reset", timeout=240, trust_env=False).raise_for_status()
        yield url
    finally:
        server.stop()


@contextlib.contextmanager
def virtual_hosts_only(host: str) -> Iterator[tuple[str, list[str]]]:
    """An S3 server that knows its buckets as BUCKET.HOST alone, as CoreWeave's does.

    Yields:
        The URL to set as http_proxy: no name server knows such hosts here. And what was asked:
        the host of each request.
    """
    asked: list[str] = []
    moto = DomainDispatcherApplication(create_backend_app)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        asked.append(environ["HTTP_HOST"])
        bucket, _, rest = environ["HTTP_HOST"].partition(f".{host}")
        if rest or bucket == environ["HTTP_HOST"]:
            start_response("400 Bad Request", [("Content-Type", "text/xml")])
            return [b"<Error><Code>PathStyleRequestNotAllowed</Code></Error>"]
        path = f"/{bucket}{environ['PATH_INFO']}"
        environ |= {"HTTP_HOST": "127.0.0.1:9", "PATH_INFO": path, "RAW_URI": path}
        return moto(environ, start_response)

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        BackendDict.reset()
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Quiet(WSGIRequestHandler):
    def log_request(self, *_: object) -> None:
        pass
