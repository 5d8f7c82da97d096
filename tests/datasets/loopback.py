"""A real HTTP server on loopback for the tests of downloads: ranges, ETags, and connections that break off."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple


class Request(NamedTuple):
    name: str
    range: str | None
    if_range: str | None
    sent: int  # bytes


class Server:
    """Serves a folder's files. ``break_at``: bytes after which the next answer's connection is closed, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[Request] = []
        self.break_at: dict[str, int] = {}
        self.hang = False  # break off by silence, until `released`
        self.released = threading.Event()
        self.redirect = False  # every address to itself
        self.version = "1"
        self.url = ""


def handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            name = self.path.lstrip("/")
            path = server.folder / name
            wanted, condition = self.headers.get("Range"), self.headers.get("If-Range")
            if server.redirect:
                self.send_response(302)
                self.send_header("Location", self.path)
                self.end_headers()
                return
            if not path.is_file():
                server.requests.append(Request(name, wanted, condition, 0))
                self.send_error(404)
                return
            data, tag = path.read_bytes(), f'"{server.version}"'
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and condition in (None, tag) else 0
            if start and start >= len(data):
                server.requests.append(Request(name, wanted, condition, 0))
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.end_headers()
                return
            end = server.break_at.pop(name, len(data))
            server.requests.append(Request(name, wanted, condition, end - start))
            self.send_response(206 if start else 200)
            self.send_header("ETag", tag)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            self.wfile.write(data[start:end])
            if end < len(data) and server.hang:
                self.wfile.flush()
                server.released.wait(60)
            self.close_connection = True

    return Handler


class LoopbackServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Prints no traceback when a client hangs up early, as some tests require."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    http = LoopbackServer(("127.0.0.1", 0), handler(server))
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        http.shutdown()
        http.server_close()
        thread.join()
