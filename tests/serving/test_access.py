"""Access: tokens, hosts and origins; bounds on bodies; no secrets in logs and errors."""

import asyncio
import base64
import hashlib
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from local_service import LocalServer, serving

from refadgen.config import ServeConfig, load_config
from refadgen.config.serve import AccessConfig, LimitsConfig
from refadgen.serving.access import LOCAL, Access
from refadgen.serving.errors import ApiError
from refadgen.serving.guard import Guard

TOKENS = {"shop": "the-shops-own-token", "press": "another-token-altogether"}
ENTRIES = tuple(f"{name}:{hashlib.sha256(token.encode()).hexdigest()}" for name, token in TOKENS.items())
PAGE = "https://shop.example"
KINDS = {
    "application/json": b'{"prompt": "',
    "multipart/form-data; boundary=X": b"--X\r\nContent-Disposition: form-data; name=prompt\r\n\r\n",
}
"""Content types, each with the first bytes of a body."""


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def scope(client: str | None = "127.0.0.1", server: str | None = "127.0.0.1", **headers: str) -> dict[str, Any]:
    """The ASGI scope of a request over loopback, with `headers` (`_` stands for `-`) besides Host."""
    named = {"host": "127.0.0.1:8000"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return {
        "type": "http",
        "method": "GET",
        "path": "/v1/options",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in named.items() if value],
        "client": client and (client, 5000),
        "server": server and (server, 8000),
    }


def refused(access: Access, asked: dict[str, Any]) -> tuple[int, str]:
    with pytest.raises(ApiError) as caught:
        access.owner(asked)
    return caught.value.status, caught.value.code


@pytest.fixture(scope="module")
def locked() -> Iterator[LocalServer]:
    """A server with tokens, one allowed origin and small limits."""
    words = (
        f"access.tokens=[{', '.join(ENTRIES)}]",
        f"access.allowed_origins=[{PAGE}]",
        "limits.max_body_bytes=4000",
        "limits.body_timeout_s=0.4",
    )
    with serving(*words) as running:
        yield running


@pytest.fixture(scope="module")
def keyed(locked, connect):
    return connect(locked.url)


# Tokens


def test_a_known_token_is_known_by_its_name():
    access = Access(AccessConfig(tokens=ENTRIES))
    for name, token in TOKENS.items():
        assert access.owner(scope(authorization=f"Bearer {token}")) == name


def test_with_tokens_anyone_may_ask_from_anywhere_under_any_name():
    access = Access(AccessConfig(tokens=ENTRIES))
    asked = scope("203.0.113.5", "192.0.2.1", host="ads.example", authorization=f"bearer  {TOKENS['shop']} ")
    assert access.owner(asked) == "shop"


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (None, "missing_token"),
        ("", "missing_token"),
        ("Bearer", "missing_token"),
        ("Bearer ", "missing_token"),
        (TOKENS["shop"], "missing_token"),
        (f"Token {TOKENS['shop']}", "missing_token"),
        ("Basic " + base64.b64encode(f"shop:{TOKENS['shop']}".encode()).decode(), "missing_token"),
        ("Bearer wrong", "wrong_token"),
        (f"Bearer {TOKENS['shop'][:-1]}", "wrong_token"),
        (f"Bearer {TOKENS['shop']}x", "wrong_token"),
        (f"Bearer {TOKENS['shop'].upper()}", "wrong_token"),
        (f"Bearer {TOKENS['shop']},{TOKENS['press']}", "wrong_token"),
        (f"Bearer {ENTRIES[0]}", "wrong_token"),
        (f"Bearer {ENTRIES[0].partition(':')[2]}", "wrong_token"),  # the configuration's hash is no token
        ("Bearer tökën", "wrong_token"),
    ],
)
def test_other_credentials_get_401(keyed, value, code):
    headers = {} if value is None else {"Authorization": value}
    answer = keyed.ask("GET", "/v1/options", headers=headers)
    assert keyed.problem(answer, 401)["code"] == code
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_token_in_the_query_or_a_cookie_does_not_count(keyed):
    token = TOKENS["shop"]
    for path, headers in ((f"/v1/options?token={token}&access_token={token}", {}), ("/v1/options", {"Cookie": token})):
        assert keyed.problem(keyed.ask("GET", path, headers=headers), 401)["code"] == "missing_token"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/ads"),
        ("POST", "/v1/masks"),
        ("POST", "/v1/images/edits"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/x"),
        ("GET", "/v1/options"),
        ("GET", "/v1/jobs"),
        ("POST", "/v1/jobs"),
        ("GET", "/v1/jobs/x"),
        ("DELETE", "/v1/jobs/x"),
        ("GET", "/no/such/thing"),
        ("PUT", "/v1/ads"),
        ("OPTIONS", "/v1/ads"),
        ("GET", "//healthz"),
        ("GET", "/healthz/"),
    ],
)
def test_every_path_of_the_interface_needs_a_token(keyed, method, path):
    assert keyed.problem(keyed.ask(method, path), 401)["code"] == "missing_token"


@pytest.mark.parametrize("path", ["/", "/page.css", "/page.js", "/mask.js", "/healthz", "/readyz", "/openapi.json"])
def test_what_holds_nothing_of_anybody_needs_none(keyed, path):
    assert keyed.ask("GET", path).status == 200


def test_a_right_token_is_served(keyed):
    assert keyed.ask("GET", "/v1/options", headers=bearer(TOKENS["press"])).status == 200


def test_the_configuration_holds_hashes_only(locked):
    settings = repr(locked.service.config) + repr(vars(Access(locked.service.config.access)))
    assert ENTRIES[0] in settings
    assert not any(token in settings for token in TOKENS.values())


@pytest.mark.parametrize(
    "entry",
    [
        "a-whole-secret",
        "shop:a-whole-secret",
        "shop:a-whole-secret" + "0" * 64,
        ":a-whole-secret",
        f"a whole secret:{'0' * 64}",
        f"shop:{'A' * 64}-a-whole-secret",
    ],
)
def test_a_wrong_entry_is_named_without_its_value(entry):
    with pytest.raises(ValueError, match=r"access\.tokens") as caught:
        load_config(ServeConfig, None, [f"access.tokens={json.dumps([ENTRIES[0], entry])}"])
    assert "whole" not in str(caught.value)
    assert ENTRIES[0] not in str(caught.value)


@pytest.mark.parametrize(
    "word",
    [
        "access.tokens=[{shop: a-whole-secret}]",  # with a blank after the colon, YAML reads a mapping
        "access.tokens={shop: a-whole-secret}",
        "access.tokens=[a-whole-secret",
    ],
)
def test_tokens_that_are_no_list_of_texts_are_named_without_their_value(word):
    with pytest.raises(ValueError, match=r"access\.tokens") as caught:
        load_config(ServeConfig, None, [word])
    assert "whole" not in str(caught.value)


def test_two_tokens_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"access\.tokens.*of different names") as caught:
        AccessConfig(tokens=(ENTRIES[0], f"shop:{'0' * 64}"))
    assert ENTRIES[0].partition(":")[2] not in str(caught.value)


@pytest.mark.parametrize("origin", ["*", "https://*.shop.example", "https://shop.example/", "shop.example", "null", ""])
def test_an_origin_is_one_site(origin):
    with pytest.raises(ValueError, match=r"access\.allowed_origins"):
        AccessConfig(allowed_origins=(origin,))


# Without tokens


@pytest.mark.parametrize(
    "asked",
    [
        scope(),
        scope(host="localhost:8000"),
        scope(host="LOCALHOST"),
        scope("::1", "::1", host="[::1]:8000"),
        scope(host="127.0.0.1"),
        scope(origin="http://127.0.0.1:8000"),
        scope(authorization="Bearer whatever"),
    ],
)
def test_ones_own_machine_is_served_without_tokens(asked):
    assert Access(AccessConfig()).owner(asked) == LOCAL


@pytest.mark.parametrize(
    "asked",
    [
        scope("192.168.1.5"),
        scope("203.0.113.5"),
        scope("fe80::1", "::1"),
        scope(server="192.168.1.2"),
        scope(server="0.0.0.0"),
        scope(None),
        scope(server=None),
        scope("unix"),
    ],
)
def test_other_machines_are_not(asked):
    assert refused(Access(AccessConfig()), asked) == (403, "tokens_required")


@pytest.mark.parametrize("name", ["X-Forwarded-For", "Forwarded", "X-Forwarded-Host", "X-Real-IP"])
def test_what_comes_through_a_proxy_is_not_served(client, name):
    answer = client.ask("GET", "/v1/options", headers={name: "127.0.0.1"})
    assert client.problem(answer, 403)["code"] == "tokens_required"


@pytest.mark.parametrize(
    "host",
    [
        "ads.example",
        "rebound.example:8000",
        "127.0.0.1.nip.io",
        "localhost.example",
        "localhost@ads.example",
        "127.0.0.1@ads.example:8000",
        "192.168.1.2",
        "0.0.0.0",
        "[::]",
        "[",
        "[::1",
        "]",
        "a b",
    ],
)
def test_a_name_that_was_led_here_is_not_served(client, host):
    answer = client.ask("GET", "/v1/options", headers={"Host": host})
    assert client.problem(answer, 403)["code"] == "foreign_host"


def test_without_a_host_nothing_is_served():
    assert refused(Access(AccessConfig()), scope(host="")) == (403, "foreign_host")


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://localhost",
        "http://127.0.0.1:1",
        "http://127.0.0.1:8000.evil.example",
        "http://[",
        "file://",
        "evil",
    ],
)
def test_pages_of_other_sites_are_not_served(client, origin):
    answer = client.ask("GET", "/v1/options", headers={"Origin": origin})
    assert client.problem(answer, 403)["code"] == "foreign_origin"


def test_the_endpoints_own_page_is_served(client):
    assert client.ask("GET", "/v1/options", headers={"Origin": client.url}).status == 200


def test_an_allowed_origin_is_served_without_tokens_too():
    access = Access(AccessConfig(allowed_origins=(PAGE,)))
    assert access.owner(scope(origin=PAGE)) == LOCAL
    assert refused(access, scope(origin=f"{PAGE}:8443")) == (403, "foreign_origin")


# Other origins


def preflight(client, origin: str, **headers: str) -> Any:
    asks = {"Origin": origin, "Access-Control-Request-Method": "POST", **headers}
    return client.ask("OPTIONS", "/v1/ads", headers=asks)


def test_a_preflight_of_an_allowed_page_needs_no_token(keyed):
    answer = preflight(keyed, PAGE, **{"Access-Control-Request-Headers": "authorization, content-type"})
    assert answer.status == 200
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE
    assert "authorization" in answer.headers["Access-Control-Allow-Headers"].lower()
    assert "Access-Control-Allow-Credentials" not in answer.headers


@pytest.mark.parametrize("origin", ["https://evil.example", "http://shop.example", f"{PAGE}.evil.example", "null"])
def test_a_preflight_of_another_page_is_not_allowed(keyed, origin):
    answer = preflight(keyed, origin)
    assert answer.status == 400
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_where_no_origin_is_configured_no_preflight_is_allowed(client):
    answer = preflight(client, PAGE)
    assert client.problem(answer, 403)["code"] == "foreign_origin"
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_an_allowed_page_may_read_its_answer_and_no_other_page_may(keyed):
    for origin, allowed in ((PAGE, PAGE), ("https://evil.example", None)):
        answer = keyed.ask("GET", "/v1/options", headers={"Origin": origin, **bearer(TOKENS["shop"])})
        assert answer.headers.get("Access-Control-Allow-Origin") == allowed


def test_an_allowed_page_may_read_that_its_token_is_wrong(keyed):
    answer = keyed.ask("GET", "/v1/options", headers={"Origin": PAGE, **bearer("wrong")})
    assert keyed.problem(answer, 401)
    assert answer.headers.get("Access-Control-Allow-Origin") == PAGE


# Headers


@pytest.mark.parametrize("given", ["abc", "A-b_c.9", "x" * 64])
def test_a_well_formed_request_id_is_kept(client, given):
    for path in ("/healthz", "/no/such/thing"):
        assert client.ask("GET", path, headers={"X-Request-ID": given}).headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", [None, "", "x" * 65, "a b", "<script>", "a/b", "ü", "a;b"])
def test_any_other_request_id_is_made(client, given):
    headers = {} if given is None else {"X-Request-ID": given.encode().decode("latin-1")}
    made = [client.ask("GET", "/healthz", headers=headers).headers["X-Request-ID"] for _ in range(2)]
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in made)
    assert made[0] != made[1]


@pytest.mark.parametrize("path", ["/v1/options", "/healthz", "/", "/no/such/thing"])
def test_every_answer_has_the_security_headers(client, keyed, path):
    for answer in (client.ask("GET", path), keyed.ask("GET", path)):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cache-Control"] in ("no-store", "no-cache")


# Bodies


@pytest.mark.parametrize("path", ["/v1/ads", "/v1/masks"])
def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(locked, path):
    with talk(locked) as line:
        line.sendall(head("POST", path, "Content-Length: 4001"))
        assert code_of(everything(line), 413) == "body_too_large"


def test_a_body_of_the_largest_size_is_read(keyed):
    body = b'{"image_base64": "?"}'.ljust(4000)
    for sent, status in ((body, 422), (body + b" ", 413)):
        headers = {"Content-Type": "application/json", **bearer(TOKENS["shop"])}
        assert keyed.problem(keyed.ask("POST", "/v1/ads", body=sent, headers=headers), status)


@pytest.mark.parametrize("path", ["/v1/ads", "/v1/masks"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_body_that_does_not_say_its_size_is_cut_off(locked, kind, path):
    with talk(locked) as line:
        chunk = b"3e8\r\n" + b"x" * 1000 + b"\r\n"
        begun = b"%x\r\n%s\r\n" % (len(KINDS[kind]), KINDS[kind])
        line.sendall(head("POST", path, f"Content-Type: {kind}", "Transfer-Encoding: chunked") + begun + 4 * chunk)
        assert code_of(everything(line), 413) == "body_too_large"


@pytest.mark.parametrize("framing", ["Content-Length: 3000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_body_that_drips_is_given_up(locked, kind, framing):
    def framed(part: bytes) -> bytes:
        return b"%x\r\n%s\r\n" % (len(part), part) if "chunked" in framing else part

    started = time.monotonic()
    with talk(locked) as line:
        line.sendall(head("POST", "/v1/ads", framing, f"Content-Type: {kind}") + framed(KINDS[kind]))
        threading.Thread(target=drip, args=(line, framed(b"x")), daemon=True).start()
        assert code_of(everything(line), 408) == "body_timeout"
    assert 0.4 <= time.monotonic() - started < 5


def test_a_body_that_stops_is_given_up(locked):
    with talk(locked) as line:
        line.sendall(head("POST", "/v1/ads", "Content-Length: 3000", "Content-Type: application/json") + b"{")
        assert code_of(everything(line), 408) == "body_timeout"


def test_many_half_sent_heads_and_bodies_keep_nobody_from_being_served(locked, keyed):
    lines = [talk(locked) for _ in range(150)]
    try:
        for line in lines[:100]:
            line.sendall(b"GET /v1/options HTTP/1.1\r\nHost: 127.0.0.1\r\nX-")
        for line in lines[100:]:
            line.sendall(head("POST", "/v1/ads", "Content-Length: 3000", "Content-Type: application/json") + b"{")
        started = time.monotonic()
        assert keyed.ask("GET", "/v1/options", headers=bearer(TOKENS["shop"])).status == 200
        assert time.monotonic() - started < 3
    finally:
        for line in lines:
            line.close()


def head(method: str, path: str, *lines: str) -> bytes:
    own = (f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {TOKENS['shop']}")
    return "\r\n".join([*own, *lines, "", ""]).encode()


def talk(server: LocalServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=10)


def drip(line: socket.socket, drop: bytes) -> None:
    try:
        for _ in range(200):
            line.sendall(drop)
            time.sleep(0.03)
    except OSError:  # the server is gone
        return


def everything(line: socket.socket) -> bytes:
    """The server's answer, read to its end."""
    said = b""
    while not (found := re.search(rb"content-length: (\d+)\r\n.*?\r\n\r\n", said, re.DOTALL | re.IGNORECASE)) or (
        len(said) < found.end() + int(found[1])
    ):
        part = line.recv(65536)
        assert part, said
        said += part
    return said


def code_of(answer: bytes, status: int) -> str:
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    return json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"]


# Logs and errors hold no secrets


@pytest.fixture
def logged(caplog) -> Iterator[pytest.LogCaptureFixture]:
    """All log records, also of Ray Serve's logger, which may not propagate. Without those of the test's client."""
    logger = logging.getLogger("ray.serve")
    before = logger.propagate
    logger.propagate = True
    with caplog.at_level("DEBUG"), caplog.at_level("DEBUG", "ray.serve"), caplog.at_level("INFO", "urllib3"):
        yield caplog
    logger.propagate = before


SECRET = "SECRET0123456789"


def secret_requests(client, photo: bytes) -> list[tuple[int, Any]]:
    """Requests with the secret in headers, query and body; each with its expected status."""
    body = {"image_base64": base64.b64encode(photo).decode(), "prompt": f"a cup, {SECRET}", "sku": SECRET}
    headers = {"X-Secret": SECRET, "Cookie": SECRET, "User-Agent": SECRET, "Referer": SECRET}
    json_body = {"Content-Type": "application/json"}
    text = base64.b64encode(f"no image but {SECRET}".encode()).decode()

    def ads(**fields: Any) -> Any:
        return client.ask("POST", f"/v1/ads?key={SECRET}", json=body | fields, headers=headers)

    return [
        (200, ads()),
        (422, ads(num_variants=0)),
        (422, ads(image_base64=text)),
        (422, ads(mask_base64=text)),
        (422, ads(prompt=f"far too long {SECRET}")),
        (422, ads(prompt=[f"{SECRET} " * 100])),
        (422, ads(title=[SECRET])),
        (422, ads(seed=SECRET)),
        (422, ads(layout={"anchor": SECRET})),
        (422, ads(scene=SECRET)),
        (422, ads(image_base64=None, image_url=f"http://user:{SECRET}@host/a.png?sig={SECRET}")),
        (422, ads(image_base64=None, image_url=f"ftp://user:{SECRET}@host/a.png?sig={SECRET}")),
        (
            400,
            client.ask("POST", "/v1/ads", body=f'{{"prompt": {SECRET}', headers=headers | json_body),
        ),
        (422, client.form("/v1/ads", ("image", ("a.png", f"no image but {SECRET}".encode())), ("prompt", SECRET))),
        (422, client.form("/v1/ads", ("image", (f"{SECRET}.png", photo)), ("seed", SECRET))),
        (422, client.form("/v1/images/edits", ("image", ("a.png", photo)), ("prompt", SECRET), ("n", SECRET))),
        (403, client.ask("POST", "/v1/jobs", json={"catalog": f"/x/{SECRET}", "output": SECRET}, headers=headers)),
        (404, client.ask("GET", f"/v1/{SECRET}?key={SECRET}", headers=headers)),
    ]


def test_neither_logs_nor_errors_repeat_what_a_request_says(client, photo, logged):
    answers = secret_requests(client, photo)
    for status, answer in answers:
        assert answer.status == status, answer.data
        if status != 200:
            assert SECRET not in json.dumps(client.problem(answer, status))
    wait_until(lambda: all(answer.headers["X-Request-ID"] in logged.text for _, answer in answers))
    assert "POST /v1/ads 200" in logged.text
    assert SECRET not in logged.text
    assert base64.b64encode(photo).decode()[:40] not in logged.text


def test_neither_logs_nor_errors_repeat_a_token(keyed, logged):
    for token in (TOKENS["shop"], f"{TOKENS['shop']}-{SECRET}"):
        answer = keyed.ask("GET", f"/v1/options?token={token}", headers=bearer(token))
        assert answer.status in (200, 401)
        assert token.encode() not in answer.data
        assert token not in str(answer.headers)
    wait_until(lambda: " 200 " in logged.text and " 401 " in logged.text)
    assert TOKENS["shop"] not in logged.text
    assert SECRET not in logged.text


def test_a_request_is_logged_with_its_id_route_and_status(client, logged):
    client.ask("GET", "/v1/models/no-such-model", headers={"X-Request-ID": "look-for-me"})
    wait_until(lambda: "look-for-me" in logged.text)
    lines = [record.getMessage() for record in logged.records if "look-for-me" in record.getMessage()]
    assert len(lines) == 1
    assert lines[0].startswith("GET /v1/models/{model_id} 404 ")


def test_a_client_that_hangs_up_in_its_body_is_no_fault_of_the_server(server, logged):
    with talk(server) as line:
        lines = ("Content-Length: 100", "Content-Type: application/json", "X-Request-ID: gone-away")
        line.sendall(head("POST", "/v1/ads", *lines) + b"{")
        time.sleep(0.1)
    wait_until(lambda: "gone-away" in logged.text)
    assert "POST /v1/ads 499" in logged.text
    assert "Traceback" not in logged.text


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def test_a_fault_of_the_server_is_an_error_like_others(server, client, photo, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError(f"with {SECRET} in it")

    monkeypatch.setattr(server.service, "requested_images", broken)
    answer = client.ads(photo, prompt="a cup")
    assert SECRET.encode() not in answer.data
    assert client.problem(answer, 500)["code"] == "internal_error"


# The guard by itself


def test_a_fault_below_the_guard_is_logged_once_and_answered_as_json(logged):
    async def broken(*_: object) -> None:
        raise RuntimeError(f"deep down, {SECRET}")

    sent = run_guard(broken, scope(x_request_id="deep-down"))
    assert sent[0]["status"] == 500
    assert json.loads(sent[1]["body"])["error"]["code"] == "internal_error"
    assert SECRET.encode() not in sent[1]["body"]
    faults = [record.getMessage() for record in logged.records if "failed, id=deep-down" in record.getMessage()]
    assert len(faults) == 1
    assert "RuntimeError" in faults[0]
    assert __file__ in faults[0]
    assert SECRET not in logged.text


def test_a_fault_in_the_middle_of_an_answer_sends_no_second_one():
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("deep down")

    assert [message["type"] for message in run_guard(broken)] == ["http.response.start"]


def test_no_body_of_an_unknown_sender_is_read():
    asked: list[object] = []

    async def reading(scope: Any, receive: Any, send: Any) -> None:
        asked.append(await receive())

    sent = run_guard(reading, scope("203.0.113.5"))
    assert sent[0]["status"] == 403
    assert asked == []


def run_guard(app: Any, asked: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """The ASGI messages that the guard around `app` sends."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    guard = Guard(app, Access(AccessConfig()), LimitsConfig(), tag_answers=True)
    asyncio.run(guard(asked or scope(), receive, send))
    return sent
