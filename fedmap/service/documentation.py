"""Swagger's page for /openapi.json at /docs, from an installed package: nothing is fetched from elsewhere."""

from __future__ import annotations

from importlib import resources
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Response

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>FedMAP: HTTP interface</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="/docs/swagger-ui.css"></head>
<body><div id="swagger"></div><script src="/docs/swagger-ui-bundle.js"></script><script src="/docs/start.js"></script></body></html>
"""
_START = 'SwaggerUIBundle({url: "/openapi.json", dom_id: "#swagger", deepLinking: true, validatorUrl: null});\n'
_ASSETS = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}


def router() -> APIRouter:
    """The routes of the page."""
    made = APIRouter(prefix="/docs", include_in_schema=False)

    @made.get("")
    def page() -> Response:
        return Response(_PAGE, media_type="text/html")

    @made.get("/start.js")
    def start() -> Response:
        return Response(_START, media_type="text/javascript")

    @made.get("/{name}")
    def asset(name: str) -> Response:
        if name not in _ASSETS:
            raise HTTPException(404, f"there is no {name!r} here")
        import fastapi_offline

        content = resources.files(fastapi_offline).joinpath("static", name).read_bytes()
        return Response(content, media_type=_ASSETS[name], headers={"cache-control": "max-age=86400"})

    return made


def describe_token(app: FastAPI) -> None:
    """Say in the description of an application which requests need the token, so that the page asks for it."""
    described = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = described()
            schemes = {"token": {"type": "http", "scheme": "bearer", "description": "shown by the server at its first start"}}
            schema.setdefault("components", {})["securitySchemes"] = schemes
            for operations in schema["paths"].values():
                for method, operation in operations.items():
                    if method in ("post", "put"):
                        operation["security"] = [{"token": []}]
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]
