"""Serves a study until Ctrl-C: on loopback, or for phones and colleagues behind a link with a key."""

import hashlib
import ipaddress
import json
import secrets
import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import uvicorn

from refadgen.batch.lease import OutputInUseError, held
from refadgen.batch.ray_connection import require_lasting
from refadgen.batch.shards import Shard
from refadgen.config import StudyConfig
from refadgen.config.serve import AccessConfig
from refadgen.evaluation.study.answers import AnswerBook
from refadgen.evaluation.study.app import StudyService, make_app
from refadgen.evaluation.study.pictures import BlindPictures
from refadgen.evaluation.study.plan import Protocol, open_study
from refadgen.serving.run import free_port
from refadgen.storage.store import Storage

_LINK = "link.json"
"""In the output of a study that others than this machine may open: the key of its link, so that links stay good."""


@dataclass(frozen=True, kw_only=True)
class StudyCommand:
    """What the command line asks for. runs, real: see `plan.open_study`."""

    runs: Sequence[str]
    output: str
    protocols: Sequence[Protocol]
    real: str | None
    host: str
    port: str


def serve(config: StudyConfig, command: StudyCommand) -> None:
    """Serves until Ctrl-C. Raises: ValueError naming a run, a setting or an option, before anyone is asked."""
    storage = Storage(command.output)
    require_lasting(storage)
    storage.check_writable("--output")
    loopback = _is_loopback(command.host)
    port = free_port(command.port, command.host)
    study = open_study(config, storage, command.runs, command.protocols, command.real)
    pictures = BlindPictures(study)
    pictures.check(study)
    key = None if loopback else _link_key(storage)
    access = AccessConfig(tokens=(f"study:{hashlib.sha256(key.encode()).hexdigest()}",) if key else ())
    app = make_app(StudyService(study, AnswerBook(storage), pictures), access)
    try:
        # A second server would write over the answers of the first.
        with held(storage, Shard(), uuid.uuid4().hex[:8]):
            for note in study.notes:
                print(f"note: {note}")
            counts = ", ".join(f"{name.upper()} {len(each)}" for name, each in study.questions.items())
            print(f"questions: {counts}; answers: {storage.uri}/answers/")
            print(f"open {_link(command.host, port, key)} (Ctrl-C ends; the same command goes on)", flush=True)
            # No access log: it would hold the ids of raters.
            uvicorn.run(app, host=command.host, port=port, log_level="warning", access_log=False)
    except OutputInUseError as error:
        raise ValueError(
            f"--output {storage.uri}: another server of this study is at work there; end it first"
        ) from error


def _is_loopback(host: str) -> bool:
    """Raises: ValueError where `host` is no address of this machine's network."""
    try:
        return ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        raise ValueError(
            f"--host {host}: must be an IPv4 address of this machine: 127.0.0.1, or 0.0.0.0 for all of its networks"
        ) from None


def _link_key(storage: Storage) -> str:
    try:
        return str(json.loads(storage.read(_LINK))["key"])
    except FileNotFoundError:
        key = secrets.token_urlsafe(18)
        storage.write(_LINK, json.dumps({"key": key}).encode())
        return key


def _link(host: str, port: int, key: str | None) -> str:
    """The address for raters. The key stands behind #, so that it is part of no request's address."""
    name = socket.gethostname() if host == "0.0.0.0" else host
    return f"http://{name}:{port}/" + (f"#{key}" if key else "")
