"""The study over HTTP: the page, questions without the names of methods, pictures, answers.

A question is known by its number in the rater's own order and a picture by its place in it: no address, name or header
tells which method made it.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from refadgen.config.serve import AccessConfig
from refadgen.evaluation.study.answers import Answer, AnswerBook, Rater
from refadgen.evaluation.study.pictures import BlindPictures
from refadgen.evaluation.study.plan import GENERATED, REAL, Question, Study, order_of, shown_to
from refadgen.generation.pages import filled_page, page_json
from refadgen.serving.access import Access
from refadgen.serving.errors import ApiError
from refadgen.storage.store import STORE_ERRORS

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "X-Frame-Options": "DENY",
}
_MAX_BODY = 4096


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Entry(_Strict):
    """Who enters."""

    name: str = Field(min_length=1, max_length=80, pattern=r"\S")


class GivenAnswer(_Strict):
    """An answer as the page sends it."""

    rater: str = Field(max_length=16)
    protocol: Literal["j2b", "g2r"]
    number: int = Field(ge=1)
    choice: int = Field(ge=1)
    """J2b: the chosen place, from 1. G2R: 1 real, 2 generated."""
    seconds: float | None = Field(default=None, ge=0, le=1e6)


class StudyService:
    """Gives HTTP requests their meaning."""

    def __init__(self, study: Study, book: AnswerBook, pictures: BlindPictures) -> None:
        self.study, self._book, self._pictures = study, book, pictures

    def entered(self, name: str) -> dict[str, Any]:
        """Who has entered, and how far they are."""
        rater = self._book.enter(name)
        return {"rater": rater.id, "name": rater.name, "protocols": [self._progress(rater, p) for p in self._asked()]}

    def _asked(self) -> list[str]:
        return list(self.study.questions)

    def _progress(self, rater: Rater, protocol: str) -> dict[str, Any]:
        """next: the first number without an answer; None: all have one."""
        order = order_of(self.study, protocol, rater.id)
        open_ = [number for number, each in enumerate(order, 1) if (protocol, each.id) not in rater.answers]
        return {
            "protocol": protocol,
            "instruction": self.study.asked["settings"][protocol]["instruction"],
            "total": len(order),
            "done": len(order) - len(open_),
            "next": open_[0] if open_ else None,
        }

    def question(self, id: str, protocol: str, number: int) -> dict[str, Any]:
        """A question as a rater sees it."""
        rater, question = self._at(id, protocol, number)
        answer = rater.answers.get((protocol, question.id))
        given = None
        if answer is not None:
            given = answer.place if protocol == "j2b" else 1 + (answer.choice == GENERATED)
        shown = {"prompt": question.prompt, "has_product": True} if question.product_picture else {}
        return {"number": number, "pictures": len(question.pictures), "answer": given, **shown}

    def picture(self, id: str, protocol: str, number: int, place: int) -> bytes:
        """A picture of a question. place: from 1 in the rater's order; 0: the product."""
        _, question = self._at(id, protocol, number)
        shown = [question.product_picture, *shown_to(self.study, question, id)]
        picture = shown[place] if 0 <= place < len(shown) else None
        if picture is None:
            raise HTTPException(404, "no such picture")
        return self._pictures(picture, question)

    def answer(self, given: GivenAnswer) -> dict[str, Any]:
        """Keeps an answer; once this returns, it is written."""
        rater, question = self._at(given.rater, given.protocol, given.number)
        shown = [picture.method for picture in shown_to(self.study, question, rater.id)]
        choices = shown if given.protocol == "j2b" else [REAL, GENERATED]
        if given.choice > len(choices):
            raise HTTPException(422, f"choice={given.choice}: must be 1 to {len(choices)}")
        self._book.add(
            rater.id,
            Answer(
                study=self.study.id,
                protocol=given.protocol,
                rater=rater.name,
                question=question.id,
                product=question.product,
                scene=question.scene,
                variant=question.variant,
                shown=tuple(shown),
                choice=choices[given.choice - 1],
                place=given.choice if given.protocol == "j2b" else None,
                seconds=given.seconds,
                answered_at=datetime.now(UTC),
            ),
        )
        return self._progress(rater, given.protocol)

    def _at(self, id: str, protocol: str, number: int) -> tuple[Rater, Question]:
        rater = self._book.rater(id) if id.isalnum() else None
        if rater is None:
            raise HTTPException(404, "nobody has entered under this id; give your name again")
        order = order_of(self.study, protocol, id) if protocol in self.study.questions else []
        if not 1 <= number <= len(order):
            raise HTTPException(404, "no such question")
        return rater, order[number - 1]


def make_app(service: StudyService, access: AccessConfig) -> FastAPI:
    """The application. access: without tokens only this machine is served, through loopback."""
    app = FastAPI(title="RefAdGen study", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    admitted = [Depends(_admission(Access(access)))]

    @app.middleware("http")
    async def secured(request: Request, call_next: Callable[[Request], Any]) -> Response:
        if not request.headers.get("content-length", "0").isdecimal() or (
            int(request.headers.get("content-length", "0")) > _MAX_BODY or "transfer-encoding" in request.headers
        ):
            answer = Response(status_code=413)
        else:
            answer = await call_next(request)
        answer.headers.update(_HEADERS)
        return answer

    page = filled_page("page.html", page_json({}), __package__, asks_server=True)

    @app.get("/")
    def index() -> Response:
        return Response(page, media_type="text/html")

    @app.post("/raters", dependencies=admitted)
    def enter(entry: Entry) -> dict[str, Any]:
        return _kept(lambda: service.entered(entry.name))

    @app.get("/questions/{rater}/{protocol}/{number}", dependencies=admitted)
    def question(rater: str, protocol: str, number: int) -> dict[str, Any]:
        return _kept(lambda: service.question(rater, protocol, number))

    @app.get("/pictures/{rater}/{protocol}/{number}/{place}", dependencies=admitted)
    def picture(rater: str, protocol: str, number: int, place: int) -> Response:
        try:
            return Response(service.picture(rater, protocol, number, place), media_type="image/jpeg")
        except ValueError as error:
            # The file's name may tell its method: it goes to the log of whoever runs the study.
            print(f"study: {error}", flush=True)
            raise HTTPException(500, "this picture cannot be read any more") from None

    @app.post("/answers", dependencies=admitted)
    def answer(given: GivenAnswer) -> dict[str, Any]:
        return _kept(lambda: service.answer(given))

    return app


def _kept(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return work()
    except (*STORE_ERRORS, ValueError) as error:
        print(f"study: {type(error).__name__}: {error}", flush=True)
        raise HTTPException(503, "answers cannot be read or written just now; nothing was kept, try again") from None


def _admission(access: Access) -> Callable[[Request], None]:
    def admit(request: Request) -> None:
        try:
            access.owner(request.scope)
        except ApiError as error:
            raise HTTPException(error.status, error.message) from None

    return admit
