"""The dashboard's files: what is served under which policy, and what no page may hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from fedmap.service import background, dashboard
from fedmap.service.dashboard import PAGES, POLICY

FILES = sorted(PAGES.iterdir())
SCRIPTS = [path for path in FILES if path.suffix == ".js"]
HTML = [path for path in FILES if path.suffix == ".html"]
names = [path.name for path in FILES]


@pytest.fixture(scope="module")
def front() -> Iterator[httpx.Client]:
    app = FastAPI()
    app.include_router(dashboard.router())
    with background.serving(app) as served, httpx.Client(base_url=served.url) as client:
        yield client


@pytest.mark.parametrize(("address", "title"), [("/", "Run"), ("/runs", "Runs"), ("/compare", "Compare")])
def test_a_page_comes_with_its_header_and_a_strict_policy(front: httpx.Client, address: str, title: str) -> None:
    answer = front.get(address)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert f"<title>{title} · FedMAP</title>" in answer.text
    assert 'class="skip" href="#main"' in answer.text
    assert "<!-- header -->" not in answer.text


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix in dashboard.KINDS], ids=lambda path: path.name)
def test_every_asset_is_served_as_what_it_is(front: httpx.Client, path: Path) -> None:
    answer = front.get(f"/assets/{path.name}")
    assert answer.content == path.read_bytes()
    assert answer.headers["content-type"].partition(";")[0] == dashboard.KINDS[path.suffix]
    assert answer.headers["content-security-policy"] == POLICY


@pytest.mark.parametrize("name", ["none.js", "index.html", "header.html", "..%2fdashboard.py", "%2e%2e%2fdashboard.py", "%00"])
def test_nothing_else_is(front: httpx.Client, name: str) -> None:
    answer = front.get(f"/assets/{name}")
    assert answer.status_code == 404
    assert "APIRouter" not in answer.text


class Page(HTMLParser):
    """Elements with their attributes, and whether a script or a style stands in the page itself."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("path", HTML, ids=lambda path: path.name)
def test_a_page_needs_nothing_that_the_policy_forbids(path: Path) -> None:
    for tag, attributes in Page(path).found:
        assert tag != "style"
        assert tag != "script" or attributes.get("src"), "no script in the page itself"
        assert not [name for name in attributes if name == "style" or name.startswith("on")]
        for name in ("src", "href"):
            target = attributes.get(name)
            if target and target.startswith("/assets/"):
                assert target.removeprefix("/assets/") in names
            elif target:
                assert re.match(r"[/#]", target), f"{target} is not on this host"


@pytest.mark.parametrize("path", HTML, ids=lambda path: path.name)
def test_labels_and_descriptions_point_at_something(path: Path) -> None:
    found = Page(path).found
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in found:
        for name in ("for", "aria-labelledby", "aria-describedby"):
            assert attributes.get(name, None) in (None, *ids)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_names_another_host(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")  # a name, never fetched
    assert not re.search(r"https?://|[\"'(]//", text)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_never_reads_data_as_markup_or_code(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|\beval\(|new Function|srcdoc|setHTML"
    )
    assert re.findall(forbidden, text) == []
    assert not re.search(r"setTimeout\(\s*[\"'`]|javascript:", text)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_imports_what_is_there(path: Path) -> None:
    for wanted, target in re.findall(r"import \{([^}]*)\} from \"/assets/([^\"]+)\"", path.read_text(encoding="utf-8")):
        assert target in names
        exported = (PAGES / target).read_text(encoding="utf-8")
        for name in filter(None, (part.partition(" as ")[0].strip() for part in wanted.split(","))):
            assert re.search(rf"export (async )?(function|const|class) {re.escape(name)}(?!\w)", exported), f"{target} has no {name}"


def test_every_element_that_a_script_asks_for_exists() -> None:
    pages = {"live.js": "index.html", "summary.js": "index.html", "scores.js": "index.html", "clients.js": "index.html", "maps.js": "index.html",
             "strategy.js": "index.html", "runs.js": "runs.html", "compare.js": "compare.html"}  # fmt: skip
    for script, page in pages.items():
        ids = {attributes.get("id") for _, attributes in Page(PAGES / page).found}
        asked = set(re.findall(r"\$\(\"([^\"]+)\"\)", (PAGES / script).read_text(encoding="utf-8")))
        assert asked - ids == set(), script
