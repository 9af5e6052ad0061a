"""POST /predict over the server's front: the answer, its limits, and who may ask."""

import io
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from fedmap.prediction.predictor import Predictor
from fedmap.service import predict
from fedmap.service.background import serving
from fedmap.service.server_front import create_server_app
from tests.movie_runs import MovieRun

pytestmark = [pytest.mark.slow, pytest.mark.network]
OWN_PAGE = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture(scope="module")
def front(movie_run: MovieRun) -> Iterator[httpx.Client]:
    with serving(create_server_app(movie_run.outputs, token="t" * 20)) as served, httpx.Client(base_url=served.url, timeout=60) as client:
        yield client


def test_the_answer_is_the_models(front: httpx.Client, movie_run: MovieRun) -> None:
    assert front.get("/api/models").json() == [{"id": "2026-11-21~10-00-00", "models": ["best", "last"], "clients": []}]
    movie = movie_run.movies[0]
    content = movie_run.poster(movie["img_name"]).read_bytes()
    form = {"text": movie["text"].replace(". ", ".\r\n"), "explain": "true"}
    answer = front.post("/predict", data=form, files={"poster": ("p.png", content)}, headers=OWN_PAGE)
    assert answer.status_code == 200, answer.text
    document = answer.json()
    predictor = Predictor.open(movie_run.folder)
    plot = movie["text"].replace(". ", ".\n")
    expected = predictor.predict(plot, content)
    assert document["decided"] == list(expected.decided)
    assert [row["label"] for row in document["scores"]] == [row["label"] for row in expected.rows()]
    assert [row["score"] for row in document["scores"]] == pytest.approx([row["score"] for row in expected.rows()], abs=1e-5)
    assert document["model"]["run"] == "2026-11-21~10-00-00"
    alone = {row["label"]: row["score"] for row in document["without_poster"]}
    assert alone == pytest.approx({row["label"]: row["score"] for row in predictor.predict(plot).rows()}, abs=1e-5)
    assert all(plot[word["start"] : word["end"]] == word["word"] for word in document["explanation"]["words"])
    last = front.post("/predict", data={"text": "a robot", "model": "last", "run": "2026-11-21~10-00-00"}, headers=OWN_PAGE).json()
    assert last["model"]["which"] == "last"
    assert last["without_text"] is None


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it has 60,000 x 60,000 pixels."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "PNG")
    content = bytearray(file.getvalue())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(
    ("form", "poster", "status", "reason"),
    [
        ({}, None, 400, "give a plot, a poster, or both"),
        ({"text": " \n"}, None, 400, "give a plot, a poster, or both"),
        ({}, b"no picture", 400, "it is none of JPEG, PNG"),
        ({}, b"", 400, "the file is empty"),
        ({}, bomb(), 400, "more than 50,000,000 pixels"),
        ({"text": "a" * (predict.MAX_TEXT + 1)}, None, 422, "at most 20000 characters"),
        ({}, b"\0" * (predict.MAX_POSTER + 1), 413, "more than 10,485,760 bytes"),
        ({}, b"\0" * (predict.MAX_BODY + 1), 413, "the request is too large"),
        ({"text": "a", "run": "2026-11-21~99"}, None, 404, "there is no run '2026-11-21~99'"),
        ({"text": "a", "run": "../../etc"}, None, 404, "there is no run"),
        ({"text": "a", "model": "first"}, None, 422, "'best' or 'last'"),
        ({"text": "a", "client": "0"}, None, 404, "FedAvg trains one model for everybody"),
        ({"text": "a", "client": "-1"}, None, 422, "greater than or equal to 0"),
    ],
)
def test_what_cannot_be_answered_has_a_reason(
    front: httpx.Client, form: dict[str, str], poster: bytes | None, status: int, reason: str
) -> None:
    files = {} if poster is None else {"poster": ("p.jpg", poster)}
    try:
        answer = front.post("/predict", data=form, files=files or {"x": ("", b"")}, headers=OWN_PAGE)
    except httpx.WriteError:  # the front hangs up on a body that is far too long
        assert status == 413
        return
    assert answer.status_code == status, answer.text
    assert reason in answer.json()["detail"]


def test_without_the_token_only_the_fronts_own_page_may_ask(front: httpx.Client) -> None:
    form = {"text": "a robot"}
    assert front.post("/predict", data=form).status_code == 401
    assert front.post("/predict", data=form, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert front.post("/predict", data=form, headers={"Origin": "http://elsewhere.example"}).status_code == 403
    assert front.post("/predict", data=form, headers={"Authorization": f"Bearer {'t' * 20}"}).status_code == 200
    assert front.post("/predict", data=form, headers=OWN_PAGE | {"Host": "elsewhere.example"}).status_code == 421


def test_no_model_yet(tmp_path: Path) -> None:
    with serving(create_server_app(tmp_path)) as served, httpx.Client(base_url=served.url, timeout=60) as client:
        assert client.get("/api/models").json() == []
        assert client.get("/predict").status_code == 200
        answer = client.post("/predict", data={"text": "a"}, headers=OWN_PAGE)
        assert (answer.status_code, answer.json()["detail"][:32]) == (404, "no run has saved a model yet; on")
