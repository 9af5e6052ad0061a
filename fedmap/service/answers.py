"""How answers and errors are written: JSON that every parser reads, and errors as one sentence under "detail"."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from fedmap.errors import FederationError
from fedmap.files import plain
from fedmap.service.schemas import Problem

PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "what was asked cannot be done"},
    401: {"model": Problem, "description": "the token is missing or wrong"},
    403: {"model": Problem, "description": "nobody may do this"},
    408: {"model": Problem, "description": "the request took too long to come"},
    413: {"model": Problem, "description": "the request is too large"},
    421: {"model": Problem, "description": "the front was asked under the name of another machine"},
    422: {"model": Problem, "description": "the request has mistakes"},
    503: {"model": Problem, "description": "not now: what is needed for an answer is busy, or cannot be written"},
}


class Json(JSONResponse):
    """Strict ASCII JSON: half a surrogate pair in somebody's text cannot break it, and what is not finite is null."""

    def render(self, content: Any) -> bytes:
        """The bytes of a value; see `fedmap.files.plain`."""
        return json.dumps(plain(content), allow_nan=False, separators=(",", ":")).encode()


def install_answers(app: FastAPI) -> None:
    """Let all errors of an application look the same."""

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return Json({"detail": str(error.detail)}, error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def mistaken(request: Request, error: RequestValidationError) -> Response:
        places = ["{}: {}".format(".".join(str(part) for part in problem["loc"]), problem["msg"]) for problem in error.errors()[:5]]
        return Json({"detail": "the request has mistakes: " + "; ".join(places)}, 422)

    @app.exception_handler(FederationError)
    async def failed(request: Request, error: FederationError) -> Response:
        return Json({"detail": str(error)}, 400)
