"""A vision-language model as judge, at any address with OpenAI's interface, on a sample of the ads."""

import base64
import hashlib
import io
import json
import os
import re
from collections.abc import Sequence
from typing import Any

import urllib3
from PIL import Image

from refadgen.config.evaluate import JudgeConfig
from refadgen.evaluation.measures.picture import AdPicture, ImageU8, Values

_QUESTION = """The first picture is a product, cut out on white. The second picture is an ad that should show exactly
this product in a scene. Judge two things, each from 1 (worst) to 5 (best).
identity: is the product in the ad the very same one? Compare shape, parts, colours, print and logo. Another light and
shadows do not count. 5: no difference. 3: the same kind of product, with differences that a buyer would notice.
1: another product.
realism: does the ad look like a real photograph?
Answer with JSON alone, nothing before or after it: {"identity": N, "realism": N}"""
_FENCED = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)
_GRADES = range(1, 6)
_RETRIED = (408, 429, 500, 502, 503, 504)
_REFUSED = (400, 413, 415, 422)
"""Answers to one request that no other attempt changes, such as that of a filter of contents."""


class VisionLanguageJudge:
    """`judge_identity` and `judge_realism`, 1 to 5, and `judge_no_answer`: 1 where the judge refused or answered in
    another form than asked, which is then not scored, else 0. All None for ads outside of the sample.

    The sample depends on product and prompt alone, so that all runs have the same.
    """

    measures = ("judge_identity", "judge_realism", "judge_no_answer")

    def __init__(self, config: JudgeConfig, *, backoff_s: float = 1.0) -> None:
        """Asks the server which models it has.

        backoff_s: wait before the second attempt; it doubles. Raises: ValueError naming the setting that is wrong.
        """
        assert config.url is not None
        self._config = config
        self._url = config.url.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if config.key_variable is not None:
            key = os.environ.get(config.key_variable, "").strip()
            if not key:
                raise ValueError(
                    f"judge.key_variable={config.key_variable}: this variable is not set where images are scored; set "
                    "it before Ray starts, on every node"
                )
            self._headers["Authorization"] = f"Bearer {key}"
        # No redirects: the key would go along.
        retry = urllib3.Retry(
            total=4,
            redirect=0,
            status_forcelist=_RETRIED,
            allowed_methods=None,
            backoff_factor=backoff_s,
            raise_on_status=False,
            raise_on_redirect=False,
        )
        self._http = urllib3.PoolManager(retries=retry, timeout=config.timeout_s)
        self._require_model()
        self.network = f"{config.model} at {urllib3.util.parse_url(self._url).host} (licence: see its page)"

    def __call__(self, pictures: Sequence[AdPicture]) -> Values:
        grades = [self._grades(each) if self._chosen(each) else None for each in pictures]
        return {
            "judge_identity": [found and found[0] for found in grades],
            "judge_realism": [found and found[1] for found in grades],
            "judge_no_answer": [None if found is None else float(found[0] is None) for found in grades],
        }

    def _chosen(self, picture: AdPicture) -> bool:
        digest = hashlib.sha256(f"{picture.sku}\0{picture.prompt}".encode()).digest()
        return int.from_bytes(digest[:8]) < self._config.share * 2**64

    def _grades(self, picture: AdPicture) -> tuple[float | None, float | None]:
        """Raises: RuntimeError where the server does not answer: what has no scores is scored by the next run."""
        side_px = self._config.picture_px
        content: list[dict[str, Any]] = [{"type": "text", "text": _QUESTION}]
        for image in (picture.canvas_u8, picture.ad_u8):
            content.append({"type": "image_url", "image_url": {"url": _data_address(image, side_px)}})
        body = {
            "model": self._config.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": self._config.max_tokens,
        }
        status, data = self._ask("POST", "/chat/completions", json.dumps(body).encode())
        if status in _REFUSED:
            return None, None
        if status != 200:
            raise RuntimeError(f"judge.url={self._url}: answered {status}; the same command goes on once it works")
        found = parse_answer(data)
        return (None, None) if found is None else (float(found[0]), float(found[1]))

    def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and body. Raises: RuntimeError, never with the headers, which hold the key."""
        try:
            answer = self._http.request(method, self._url + path, body=body, headers=self._headers)
        except urllib3.exceptions.HTTPError as error:
            raise RuntimeError(f"judge.url={self._url}: does not answer ({type(error).__name__})") from None
        return answer.status, answer.data

    def _require_model(self) -> None:
        try:
            status, data = self._ask("GET", "/models")
        except RuntimeError as error:
            raise ValueError(f"{error}; start it, or set judge.url to null") from None
        if status in (401, 403):
            raise ValueError(
                f"judge.key_variable={self._config.key_variable}: {self._url} answered {status}: wrong key"
            )
        try:
            names = [str(each["id"]) for each in json.loads(data)["data"]] if status == 200 else []
        except (ValueError, KeyError, TypeError):
            names = []  # not every server has a list
        if names and self._config.model not in names:
            raise ValueError(
                f"judge.model={self._config.model!r}: not among the models of {self._url}: {', '.join(names[:12])}"
            )


def parse_answer(data: bytes) -> tuple[int, int] | None:
    """(identity, realism) of a chat completion; None: a refusal, cut off, or anything else than what was asked for."""
    try:
        choice = json.loads(data)["choices"][0]
        message = choice["message"]
        if message.get("refusal") or choice.get("finish_reason") != "stop":
            return None
        text = message["content"].strip()
        fenced = _FENCED.fullmatch(text)
        found = json.loads(fenced[1] if fenced else text)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    if not isinstance(found, dict) or found.keys() != {"identity", "realism"}:
        return None
    grades = (found["identity"], found["realism"])
    # By `type`: a bool is an int, and 4.0 is not what was asked for.
    return grades if all(type(each) is int and each in _GRADES for each in grades) else None


def _data_address(image_u8: ImageU8, side_px: int) -> str:
    """A picture as a data URL: encoded anew, so that no metadata says that it is generated."""
    image = Image.fromarray(image_u8)
    image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=92, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(sink.getvalue()).decode()}"
