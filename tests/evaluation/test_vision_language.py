"""The vision-language judge against a stand-in server with OpenAI's interface."""

import base64
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from measure_cases import changes, pictures
from PIL import Image

from refadgen.config import EvaluateConfig, load_config
from refadgen.config.evaluate import JudgeConfig
from refadgen.evaluation.measures.load import skipped_measures
from refadgen.evaluation.measures.vision_language import VisionLanguageJudge, parse_answer

KEY = "sk-do-not-tell"
ADS = pictures({"own": changes()["the product itself"], "other": changes()["wrong product"]})


class StandIn:
    """Answers chat completions as planned, and keeps what it was asked."""

    def __init__(self) -> None:
        self.planned: list[tuple[int, Any]] = []
        self.asked: list[tuple[dict[str, str], dict[str, Any]]] = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known = self.headers.get("Authorization") == f"Bearer {KEY}"
                self.answer(200 if known else 401, {"data": [{"id": "judge-7b"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stand_in.asked.append((dict(self.headers), body))
                self.answer(*stand_in.planned.pop(0))

            def answer(self, status: int, value: Any) -> None:
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    started = StandIn()
    yield started
    started.server.shutdown()
    started.server.server_close()


def judge(url: str, **values: Any) -> VisionLanguageJudge:
    usual = {"url": url, "model": "judge-7b", "key_variable": "JUDGE_KEY", "share": 1.0, "timeout_s": 5.0}
    return VisionLanguageJudge(JudgeConfig(**(usual | values)), backoff_s=0.01)


def said(text: str | None, **values: Any) -> dict[str, Any]:
    return {"choices": [{"finish_reason": "stop", "message": {"content": text}, **values}]}


def test_answers_are_scored_and_others_are_counted(stand_in: StandIn) -> None:
    asking = judge(stand_in.url, picture_px=160)
    stand_in.planned = [(200, said('{"identity": 5, "realism": 4}')), (200, said("I cannot help with that."))]
    assert asking(ADS) == {
        "judge_identity": [5.0, None],
        "judge_realism": [4.0, None],
        "judge_no_answer": [0.0, 1.0],
    }
    headers, body = stand_in.asked[0]
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert (body["model"], body["temperature"]) == ("judge-7b", 0)
    shown = [part["image_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "image_url"]
    sizes = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size for url in shown]
    assert sizes == [(128, 160), (128, 160)]  # of 256×320: product and ad
    assert asking.network == "judge-7b at 127.0.0.1 (licence: see its page)"


def test_a_busy_server_is_asked_again_and_a_filter_is_a_refusal(stand_in: StandIn) -> None:
    good = said('{"identity": 3, "realism": 2}')
    stand_in.planned = [(503, {}), (429, {}), (200, good), (400, {"error": "content filter"})]
    assert judge(stand_in.url)(ADS)["judge_identity"] == [3.0, None]
    assert len(stand_in.asked) == 4


def test_a_server_that_fails_stops_the_job_and_its_message_has_no_key(stand_in: StandIn) -> None:
    asking = judge(stand_in.url)
    stand_in.planned = [(500, {})] * 5
    with pytest.raises(RuntimeError, match=r"judge.url=.*: answered 500; the same command goes on") as failed:
        asking(ADS[:1])
    assert KEY not in str(failed.value)
    stand_in.planned = [(302, {})]  # a redirect would carry the key elsewhere
    with pytest.raises(RuntimeError, match="answered 302"):
        asking(ADS[:1])
    stand_in.server.shutdown()
    stand_in.server.server_close()
    with pytest.raises(RuntimeError, match="does not answer") as failed:
        asking(ADS[:1])
    assert KEY not in repr(failed.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "other"}, "judge.model='other': not among the models of .*: judge-7b"),
        ({"key_variable": None}, "judge.key_variable=None: .* answered 401"),
        ({"key_variable": "NOT_SET_ANYWHERE"}, "judge.key_variable=NOT_SET_ANYWHERE: this variable is not set"),
        ({"url": "http://127.0.0.1:9/v1"}, "judge.url=http://127.0.0.1:9/v1: does not answer"),
    ],
)
def test_what_is_wrong_is_named_before_the_first_image(stand_in: StandIn, values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judge(**({"url": stand_in.url} | values))
    assert stand_in.asked == []


def test_the_sample_is_the_same_whatever_the_run(stand_in: StandIn) -> None:
    many = [
        type(ADS[0])(**{**vars(ADS[0]), "sku": f"sku {number}", "run": run})
        for run in ("a", "b")
        for number in range(40)
    ]
    stand_in.planned = [(200, said('{"identity": 1, "realism": 1}'))] * 80
    found = judge(stand_in.url, share=0.25, picture_px=64)(many)["judge_no_answer"]
    assert found[:40] == found[40:]
    assert 3 <= sum(each is not None for each in found[:40]) <= 17
    assert len(stand_in.asked) == sum(each is not None for each in found)


@pytest.mark.parametrize(
    ("answer", "grades"),
    [
        (said(' {"realism": 1, "identity": 5}\n'), (5, 1)),
        (said('```json\n{"identity": 2, "realism": 3}\n```'), (2, 3)),
        (said('Sure! {"identity": 2, "realism": 3}'), None),
        (said('{"identity": 6, "realism": 3}'), None),
        (said('{"identity": 0, "realism": 3}'), None),
        (said('{"identity": "5", "realism": 3}'), None),
        (said('{"identity": 4.0, "realism": 3}'), None),
        (said('{"identity": true, "realism": 3}'), None),
        (said('{"identity": 5}'), None),
        (said('{"identity": 5, "realism": 3, "note": ""}'), None),
        (said("[5, 3]"), None),
        (said(None), None),
        (said(""), None),
        (said('{"identity": 5, "realism": 3}', finish_reason="length"), None),
        (said(None, message={"content": '{"identity": 5, "realism": 3}', "refusal": "no"}), None),
        ({"choices": []}, None),
        ({}, None),
        ([], None),
    ],
)
def test_only_the_form_that_was_asked_for_counts(answer: Any, grades: tuple | None) -> None:
    assert parse_answer(json.dumps(answer).encode()) == grades


def test_bytes_that_are_no_json_are_no_answer() -> None:
    assert parse_answer(b"<html>") is None


def test_settings_hold_no_key_and_name_the_model() -> None:
    with pytest.raises(ValueError, match=r"judge.url=.*without a key in it"):
        load_config(EvaluateConfig, None, ["judge.url=https://user:secret@host/v1", "judge.model=m"])
    with pytest.raises(ValueError, match=r"judge.model=''"):
        load_config(EvaluateConfig, None, ["judge.url=https://host/v1"])
    assert skipped_measures(EvaluateConfig(), dataset=False)["judge_identity"] == "off: set judge.url and judge.model"
