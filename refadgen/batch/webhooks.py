"""Webhooks of a run: its events, signed, retried and at least once. A receiver that is down costs a run nothing.

Headers and signature are those of Standard Webhooks (standardwebhooks.com): `webhook-id`, which stays the same when an
event is sent again, `webhook-timestamp`, and `webhook-signature`, HMAC-SHA256 of "id.timestamp.body". A thread of its
own delivers; the run waits for it at its end only, `webhook.wait_s` at most.
"""

import base64
import binascii
import contextlib
import hashlib
import hmac
import json
import os
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from urllib3.connection import HTTPConnection, HTTPSConnection

from refadgen.batch.ledger import now
from refadgen.batch.run_record import RunRecord
from refadgen.config.webhook import WebhookConfig
from refadgen.storage.addresses import is_public_address, redact_address

PROGRESS, DONE, FAILED = "run.progress", "run.done", "run.failed"
_MOST_WAIT_S = 60.0
_STOPPED_WAIT_S = 3.0
"""Of a run that is told to stop: whoever stops it kills it soon after."""
_MOST_RECORDED = 20
_LEAST_SECRET = 16


class _Undelivered(Exception):
    """Why a delivery failed, without anything of the address or the answer. final: a retry would not help."""

    def __init__(self, problem: str, *, final: bool = False) -> None:
        super().__init__(problem)
        self.final = final


@dataclass(frozen=True, kw_only=True)
class _Event:
    id: str
    type: str
    body: bytes


@dataclass
class Deliveries:
    """What became of the events, for run.json."""

    url: str
    delivered: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)
    """The id, type and problem of each, the first twenty."""


class WebhookSender:
    """Sends the events of one run, in their order. Made on the driver."""

    def __init__(self, config: WebhookConfig, run_id: str) -> None:
        """config: with absolute paths and `url` set. Raises: ValueError as `check_webhook`."""
        assert config.url is not None
        self._config, self._run_id = config, run_id
        self._secret = load_secret(config)
        self._url = urlsplit(config.url)
        self._events: deque[_Event] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._current: _Event | None = None
        self._ended = threading.Event()
        self._number, self._told_at = 0, time.monotonic()
        self.deliveries = Deliveries(url=redact_address(config.url))
        self._thread = threading.Thread(target=self._work, name="webhooks", daemon=True)
        self._thread.start()

    def progress(self, counts: Mapping[str, int], total: int) -> None:
        """Sends an event of progress, unless the last one was sent within `webhook.every_s`."""
        if not self._config.every_s or time.monotonic() - self._told_at < self._config.every_s:
            return
        self._told_at = time.monotonic()
        self.send(PROGRESS, {"counts": dict(counts), "total": total})

    def send(self, type: str, data: Mapping[str, Any]) -> None:
        """Queues one event. One of progress that still waits is replaced: a receiver that is down gathers none."""
        text = {"type": type, "timestamp": now().isoformat(), "data": {"run_id": self._run_id, **data}}
        with self._changed:
            self._number += 1
            body = json.dumps(text, ensure_ascii=False).encode()
            if self._events and self._events[-1].type == PROGRESS and self._events[-1] is not self._current:
                self._events.pop()
            self._events.append(_Event(id=f"msg_{self._run_id}_{self._number}", type=type, body=body))
            self._changed.notify()

    def close(self, wait_s: float) -> Deliveries:
        """Waits for the queued events, `wait_s` at most; those that are left then count as failed."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(wait_s)
        self._ended.set()  # wakes a wait between two deliveries
        with self._changed:
            for event in self._events:
                self._fail(event, f"not delivered within webhook.wait_s={wait_s:g}")
            self._events.clear()
        return self.deliveries

    def _work(self) -> None:
        while not self._ended.is_set():
            with self._changed:
                while not self._events:
                    if self._closing:
                        return
                    self._changed.wait()
                event = self._current = self._events[0]
            problem = self._deliver(event)
            with self._changed:
                if event in self._events:  # else `close` has given up on it
                    self._events.remove(event)
                    if problem:
                        self._fail(event, problem)
                    else:
                        self.deliveries.delivered += 1

    def _fail(self, event: _Event, problem: str) -> None:
        if len(self.deliveries.failed) < _MOST_RECORDED:
            self.deliveries.failed.append({"id": event.id, "type": event.type, "problem": problem})

    def _deliver(self, event: _Event) -> str:
        """Sends an event until the receiver takes it. Returns: why it does not; empty: it did."""
        wait_s = self._config.backoff_s
        problem = ""
        for attempt in range(self._config.num_retries + 1):
            try:
                self._post(event)
            except _Undelivered as error:
                problem = str(error)
                if error.final:
                    break
            except Exception as error:  # of urllib3, http.client, ssl and socket; their texts hold the address
                problem = f"no answer ({type(error).__name__})"
            else:
                return ""
            if attempt == self._config.num_retries or self._ended.wait(min(wait_s, _MOST_WAIT_S)):
                break
            wait_s *= 2
        return problem

    def _post(self, event: _Event) -> None:
        """One delivery. Raises: _Undelivered, or what the connection raises."""
        at = int(time.time())
        headers = {
            "Content-Type": "application/json",
            "Host": self._url.netloc,
            "User-Agent": "refadgen/0.1 (webhooks)",
            "webhook-id": event.id,
            "webhook-timestamp": str(at),
            "webhook-signature": signature(self._secret, event.id, at, event.body),
        }
        connection = self._connection()
        try:
            target = (self._url.path or "/") + (f"?{self._url.query}" if self._url.query else "")
            connection.request("POST", target, body=event.body, headers=headers, preload_content=False)
            response = connection.getresponse()
            if not 200 <= response.status < 300:  # redirects too: they could lead to a private address
                raise _Undelivered(f"answered {response.status}", final=response.status == 410)
        finally:
            connection.close()

    def _connection(self) -> HTTPConnection:
        """To a checked address of the receiver: a name that is resolved again may have a private one by then."""
        encrypted = self._url.scheme == "https"
        host = self._url.hostname or ""
        address = _checked_address(self._config, host, self._url.port or (443 if encrypted else 80))
        port, timeout_s = self._url.port or (443 if encrypted else 80), self._config.timeout_s
        if encrypted:
            context = ssl.create_default_context()
            return HTTPSConnection(address, port, timeout=timeout_s, ssl_context=context, server_hostname=host)
        return HTTPConnection(address, port, timeout=timeout_s)


def signature(secret: bytes, id: str, at: int, body: bytes) -> str:
    """The value of `webhook-signature`. at: seconds since 1970."""
    digest = hmac.new(secret, f"{id}.{at}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def load_secret(config: WebhookConfig) -> bytes:
    """The key that signs. Raises: ValueError naming the field, never with the secret."""
    if config.secret_file is not None:
        try:
            text = Path(config.secret_file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"webhook.secret_file: cannot be read ({type(error).__name__})") from None
        where = "webhook.secret_file"
    else:
        text = os.environ.get(config.secret_variable, "").strip()
        where = f"webhook.secret_variable={config.secret_variable!r}"
    if text.startswith("whsec_"):
        try:
            secret = base64.b64decode(text.removeprefix("whsec_"), validate=True)
        except binascii.Error:
            raise ValueError(f"{where}: what follows whsec_ is not base64") from None
    else:
        secret = text.encode()
    if len(secret) < _LEAST_SECRET:
        raise ValueError(f"{where}: holds no secret of {_LEAST_SECRET} bytes or more, and webhook.url needs one")
    return secret


def check_webhook(config: WebhookConfig) -> None:
    """Looks at secret and address before anything starts. A receiver whose name is not known now may be so later.

    config: with absolute paths. Raises: ValueError naming the field.
    """
    if config.url is None:
        return
    load_secret(config)
    try:
        url = urlsplit(config.url)
        host, port = url.hostname or "", url.port or 443
    except ValueError as error:
        raise ValueError(f"webhook.url={redact_address(config.url)!r}: {error}") from None
    try:
        _checked_address(config, host, port)
    except _Undelivered as error:
        if error.final:
            raise ValueError(f"webhook.url={redact_address(config.url)!r}: {error}") from None


def _checked_address(config: WebhookConfig, host: str, port: int) -> str:
    """An IP address of the host. Raises: _Undelivered where it has none, or one that is not public."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise _Undelivered("the host's name has no address") from None
    addresses = [str(entry[4][0]) for entry in found]
    if not config.allow_private_addresses and not all(map(is_public_address, addresses)):
        raise _Undelivered(
            "leads to an address that is not of the public internet; set webhook.allow_private_addresses=true",
            final=True,
        )
    return addresses[0]


@contextlib.contextmanager
def events_of(config: WebhookConfig, record: RunRecord) -> Iterator[WebhookSender | None]:
    """Sends the events of the run that the body is; None where no receiver is set. What became of them enters run.json.

    config: with absolute paths. Never raises for a receiver.
    """
    if config.url is None:
        yield None
        return
    sender = WebhookSender(config, record.run_id)
    about = {"output": record.facts["output"]}
    try:
        yield sender
    except BaseException as error:
        sender.send(FAILED, about | {"error": type(error).__name__})
        wait_s = config.wait_s if isinstance(error, Exception) else min(config.wait_s, _STOPPED_WAIT_S)
        record.facts["webhook"] = vars(sender.close(wait_s))  # `record.ending` writes it
        raise
    facts = {name: record.facts[name] for name in ("state", "ended_by", "seconds", "counts") if name in record.facts}
    sender.send(DONE, about | facts)
    record.add(webhook=vars(sender.close(config.wait_s)))
