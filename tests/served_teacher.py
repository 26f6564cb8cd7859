"""A teacher behind an HTTP server on this machine, and the plugin-like class that asks it."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import Request, urlopen

import torch
from small_run import make_teacher


class Served:
    """An external teacher that posts the batch as JSON."""

    def __init__(self, *, url: str, version: str = "1") -> None:
        self.url = url
        self.version = version

    def __call__(self, batch):
        request = Request(self.url, json.dumps({"x": batch.tolist()}).encode(), {"Content-Type": "application/json"})
        with urlopen(request, timeout=10) as answer:
            found = json.load(answer)
        return {
            "logits": torch.tensor(found["logits"], dtype=batch.dtype),
            "hidden": [torch.tensor(found["hidden"], dtype=batch.dtype)],
        }

    def fingerprint(self):
        return {"model": "net", "version": self.version}


class Answers(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        server.asked += 1
        if server.asked == server.fails_at:
            self.send_error(503, "out of memory")
            return
        rows = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["x"]
        with torch.no_grad():
            found = server.model(torch.tensor(rows, dtype=torch.float64))
        body = json.dumps({"logits": found["logits"].tolist(), "hidden": found["hidden"][0].tolist()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def serving(fails_at=None):
    """Serve the teacher of ``small_run`` on a free port; its request number ``fails_at`` fails."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.model, server.asked, server.fails_at = make_teacher().eval(), 0, fails_at
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
