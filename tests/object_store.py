"""S3 as a real HTTP server on loopback, empty when it begins."""

import contextlib
from collections.abc import Iterator

import httpx
from moto.server import ThreadedMotoServer


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
