"""Events of a run: signed, delivered once by id, and no receiver fails or hangs the run."""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from refadgen.batch.run_record import RunRecord
from refadgen.batch.webhooks import WebhookSender, check_webhook, events_of, load_secret, signature
from refadgen.config.webhook import WebhookConfig
from refadgen.storage.store import Storage

KEY = b"0123456789abcdef0123"
Request = tuple[Mapping[str, str], bytes]


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFADGEN_WEBHOOK_SECRET", "whsec_" + base64.b64encode(KEY).decode())


@pytest.fixture
def receiver() -> Iterator[Callable[[list[int]], tuple[str, list[Request]]]]:
    """Starts a receiver that answers these statuses, then 204; returns its address and what it gets."""
    servers = []

    def start(statuses: list[int]) -> tuple[str, list[Request]]:
        got: list[Request] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                got.append((dict(self.headers.items()), body))
                self.send_response(statuses[len(got) - 1] if len(got) <= len(statuses) else 204)
                self.end_headers()

            def log_message(self, format: str, *arguments: Any) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/hook", got

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def config(url: str, **settings: Any) -> WebhookConfig:
    own = {"backoff_s": 0.01, "timeout_s": 2.0, "wait_s": 5.0, "allow_private_addresses": True}
    return WebhookConfig(url=url, **own | settings)


def run_record(tmp_path: Path) -> RunRecord:
    record = RunRecord(Storage(str(tmp_path)), ())
    record.start()
    return record


def kept(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "run.json").read_text())


def test_a_receiver_that_fails_twice_gets_one_event_by_its_id(tmp_path: Path, receiver) -> None:
    url, got = receiver([500, 503])
    record = run_record(tmp_path)
    with events_of(config(url), record):
        record.finish(counts={"done": 3})
    ids = {headers["webhook-id"] for headers, _ in got}
    assert len(got) == 3
    assert ids == {f"msg_{record.run_id}_1"}
    for headers, body in got:
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        digest = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{digest}"
        assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    event = json.loads(got[-1][1])
    assert event["type"] == "run.done"
    assert event["data"]["counts"] == {"done": 3}
    assert event["data"]["run_id"] == record.run_id
    assert kept(tmp_path)["webhook"] == {"url": url, "delivered": 1, "failed": []}


@pytest.mark.parametrize("settings", [{"num_retries": 1}, {"num_retries": 20, "backoff_s": 60.0, "wait_s": 0.2}])
def test_a_receiver_that_is_always_down_costs_a_line_of_the_record(tmp_path: Path, settings: dict[str, Any]) -> None:
    record, started = run_record(tmp_path), time.monotonic()
    with events_of(config("http://127.0.0.1:9/hook", **settings), record):
        record.finish(counts={"done": 3})
    assert time.monotonic() - started < 3
    (failed,) = kept(tmp_path)["webhook"]["failed"]
    assert (failed["id"], failed["type"]) == (f"msg_{record.run_id}_1", "run.done")
    assert failed["problem"].startswith(("no answer (", "not delivered within webhook.wait_s=0.2"))
    assert kept(tmp_path)["state"] == "finished"


def test_a_run_that_fails_says_so(tmp_path: Path, receiver) -> None:
    url, got = receiver([])
    record = run_record(tmp_path)
    with pytest.raises(RuntimeError, match="boom"), record.ending(), events_of(config(url), record):
        raise RuntimeError("boom, with a secret path")
    event = json.loads(got[0][1])
    assert (event["type"], event["data"]["error"]) == ("run.failed", "RuntimeError")
    assert "secret" not in got[0][1].decode()
    assert kept(tmp_path)["state"] == "failed"
    assert kept(tmp_path)["webhook"]["delivered"] == 1


def test_progress_comes_at_its_interval_and_old_progress_is_left_out(receiver) -> None:
    url, got = receiver([])
    sender = WebhookSender(config(url, every_s=0.05), "r1")
    sender.progress({"done": 1}, 9)  # too early
    time.sleep(0.06)
    sender.progress({"done": 2}, 9)
    assert sender.close(5).delivered == 1
    assert [json.loads(body)["data"] for _, body in got] == [{"run_id": "r1", "counts": {"done": 2}, "total": 9}]
    off = WebhookSender(config(url, every_s=0), "r2")
    off.progress({"done": 2}, 9)
    assert off.close(5).delivered == 0


def test_a_receiver_that_is_down_gathers_no_progress() -> None:
    sender = WebhookSender(config("http://127.0.0.1:9/", backoff_s=60.0), "r1")
    for number in range(50):
        sender.send("run.progress", {"number": number})
    assert len(sender._events) <= 2
    assert len(sender.close(0).failed) <= 2


def test_redirects_are_no_delivery(receiver) -> None:
    url, got = receiver([302, 410])
    sender = WebhookSender(config(url), "r1")
    sender.send("run.done", {})
    (failed,) = sender.close(5).failed
    assert failed["problem"] == "answered 410"  # gone: no further try
    assert len(got) == 2


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/x", "https://10.0.0.1/", "http://[::1]/", "http://169.254.169.254/"]
)
def test_a_private_address_is_refused_before_the_run(url: str) -> None:
    with pytest.raises(ValueError, match=r"^webhook.url=.*not of the public internet; set webhook.allow_private"):
        check_webhook(config(url, allow_private_addresses=False))
    check_webhook(config(url))


def test_the_secret_comes_from_a_file_or_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_secret(WebhookConfig()) == KEY
    (tmp_path / "secret").write_text("just a long enough text\n")
    assert load_secret(WebhookConfig(secret_file=str(tmp_path / "secret"))) == b"just a long enough text"
    monkeypatch.setenv("REFADGEN_WEBHOOK_SECRET", "TOPSECRET")
    with pytest.raises(ValueError, match=r"webhook.secret_variable='REFADGEN_WEBHOOK_SECRET': holds no") as found:
        load_secret(WebhookConfig())
    assert "TOPSECRET" not in str(found.value)
    monkeypatch.delenv("REFADGEN_WEBHOOK_SECRET")
    with pytest.raises(ValueError, match="holds no secret of 16 bytes"):
        check_webhook(config("https://127.0.0.1/"))
    with pytest.raises(ValueError, match="no user and password"):
        WebhookConfig(url="https://me:pw@hooks.example/")


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """The example of its specification: https://github.com/standard-webhooks/standard-webhooks."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    found = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_without_an_address_nothing_is_sent(tmp_path: Path) -> None:
    record = run_record(tmp_path)
    with events_of(WebhookConfig(), record) as events:
        record.finish()
    assert events is None
    assert "webhook" not in kept(tmp_path)
