"""An S3 server of this machine (moto's) that fails when it is told to: python s3_server.py, which prints its address.

POST /faults with [{"path": REGEX, "kind": "slow down" | "cut" | "silent", "times": N}, ...] sets what fails and forgets
what was asked; GET /asked returns "METHOD PATH" of each request since.
"""

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class Faulty:
    """A WSGI application between the client and moto."""

    def __init__(self, server: Callable[..., Iterable[bytes]]) -> None:
        self._server = server
        self._faults: list[dict[str, Any]] = []
        self._asked: list[str] = []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if path == "/faults":
            self._faults = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
            self._asked = []
            start_response("200 OK", [])
            return [b""]
        if path == "/asked":
            start_response("200 OK", [])
            return [json.dumps(self._asked).encode()]
        self._asked.append(f"{method} {path}")
        for fault in self._faults:
            if fault["times"] and re.search(fault["path"], path) and method == "GET":
                fault["times"] -= 1
                if fault["kind"] == "cut":
                    return self._cut(self._server(environ, start_response))
                if fault["kind"] == "silent":
                    threading.Event().wait()  # until the server is killed
                start_response("503 Slow Down", [("Content-Type", "application/xml")])
                return [SLOW_DOWN]
        return self._server(environ, start_response)

    @staticmethod
    def _cut(body: Iterable[bytes]) -> Iterator[bytes]:
        """A body that ends in its middle, for the header has promised all of it."""
        content = b"".join(body)
        yield content[: len(content) // 2]
        raise ConnectionAbortedError


def serve() -> None:
    """Print the server's address, and serve."""
    # Here, since tests look into this file where there is no moto.
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_: object) -> None:
            pass

    application = Faulty(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve()
