"""The dashboard's pages: the static files of `fedmap/service/pages`, under a policy that lets nothing in from elsewhere.

The pages read the server front's API as any other client does; nothing here touches a run.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse

PAGES = Path(__file__).parent / "pages"
POLICY = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin", "Cache-Control": "no-cache"}
KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADER = "<!-- header -->"


def page(name: str, policy: str = POLICY) -> HTMLResponse:
    """A page with the header that all pages share.

    Args:
        name: of the file in `pages`, without its suffix.
        policy: the content security policy; a page that shows a picture from the visitor's disk adds `img-src 'self' blob:`.
    """
    return HTMLResponse(_html(name), headers={"Content-Security-Policy": policy, **HEADERS})


def router() -> APIRouter:
    """The routes of the pages and of the scripts, styles and icons that they load."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/")
    def live() -> HTMLResponse:
        return page("index")

    @routes.get("/runs")
    def runs() -> HTMLResponse:
        return page("runs")

    @routes.get("/compare")
    def compare() -> HTMLResponse:
        return page("compare")

    @routes.get("/favicon.ico")
    def icon() -> RedirectResponse:
        return RedirectResponse("/assets/icon.svg", status_code=308)

    @routes.get("/assets/{name}")
    def asset(name: str) -> FileResponse:
        known = {path.name: path for path in PAGES.iterdir() if path.suffix in KINDS}
        if name not in known:
            raise HTTPException(404, f"there is no page asset {name!r}")
        file = known[name]
        return FileResponse(file, media_type=KINDS[file.suffix], headers={"Content-Security-Policy": POLICY, **HEADERS})

    return routes


@cache
def _html(name: str) -> str:
    text = (PAGES / f"{name}.html").read_text(encoding="utf-8")
    assert HEADER in text, f"{name}.html has no place for the header"
    return text.replace(HEADER, (PAGES / "header.html").read_text(encoding="utf-8"))
