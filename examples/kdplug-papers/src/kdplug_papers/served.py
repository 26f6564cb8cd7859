"""A teacher behind an HTTP server."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import torch
from torch import Tensor

from kdplug import SettingError


class HttpTeacher:
    """Posts a batch's inputs as JSON to a server, and reads logits from its answer.

    The server gets ``{"model": …, "inputs": [[…], …]}`` and answers ``{"logits": [[…], …]}``, one row for each input, in the same
    order. A call that fails is repeated ``retries`` times, after 1, 2, 4… times ``wait`` seconds.
    """

    def __init__(self, *, url: str, model: str, timeout: float = 30.0, retries: int = 2, wait: float = 1.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise SettingError(f"must start with http:// or https://, got {url!r}", field="url")
        self.url, self.model, self.timeout, self.retries, self.wait = url, model, timeout, retries, wait

    def __call__(self, batch: Any) -> Mapping[str, Any]:
        """Return the logits for the first tensor of the batch."""
        inputs: Tensor = batch if isinstance(batch, Tensor) else batch[0]
        body = json.dumps({"model": self.model, "inputs": inputs.tolist()}).encode()
        for attempt in range(self.retries + 1):
            try:
                rows = self._answer(body)["logits"]
                break
            except (URLError, TimeoutError, ConnectionError):
                if attempt == self.retries:
                    raise
                time.sleep(self.wait * 2**attempt)
        return {"logits": torch.tensor(rows, dtype=inputs.dtype)}

    def _answer(self, body: bytes) -> Any:
        request = Request(self.url, body, {"Content-Type": "application/json"})  # noqa: S310  __init__ checks it
        with urlopen(request, timeout=self.timeout) as answer:  # noqa: S310
            return json.load(answer)

    def fingerprint(self) -> Mapping[str, str]:
        """Return the model: the address may change."""
        return {"model": self.model}
