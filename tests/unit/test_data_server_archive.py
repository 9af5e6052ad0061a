import hashlib
import http.server
import stat
import threading
import time
import warnings
import zipfile

import pytest

from fedmap.data.server_archive import unpack_server_data
from fedmap.errors import DataError


def _zip(folder, members, *, name="server_data.zip", compression=zipfile.ZIP_STORED):
    """A zip of (name or ZipInfo, content) pairs."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    with zipfile.ZipFile(path, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of duplicate names, which is what some tests are about
        for member, content in members:
            archive.writestr(member, content)
    return path


def _special(name, mode):
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = mode << 16
    return info


def _left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_sound_zip_is_unpacked_one_level_down(tmp_path):
    archive = _zip(tmp_path, [("server_data/", b""), ("server_data/server_test.csv", b"x"), ("server_data/img/a.jpg", b"jpg")])
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert unpack_server_data(tmp_path, sha256=digest.upper()) is True
    assert (tmp_path / "server_data" / "server_data" / "server_test.csv").read_bytes() == b"x"
    assert (tmp_path / "server_data" / "server_data" / "img" / "a.jpg").read_bytes() == b"jpg"
    assert _left(tmp_path) == ["server_data", "server_data.zip"]


def test_without_zip_and_url_nothing_happens(tmp_path):
    assert unpack_server_data(tmp_path / "missing") is False


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("/etc/cron.d/x", b"")], "member '/etc/cron.d/x' has an absolute path"),
        ([("C:/windows/x", b"")], "member 'C:/windows/x' has an absolute path"),
        ([("a/../../x", b"")], r"has a path that leads out of the folder with '\.\.'"),
        ([("..", b"")], "leads out of the folder"),
        ([("a\\..\\x", b"")], "has a name with a backslash or a control character"),
        ([(_special("link", stat.S_IFLNK | 0o777), b"/etc/passwd")], "member 'link' is a symbolic link"),
        ([(_special("pipe", stat.S_IFIFO | 0o644), b"")], "member 'pipe' is not a plain file or folder"),
        ([("a.csv", b"1"), ("a.csv", b"2")], r"member 'a\.csv' has the name of another member"),
        ([("a.csv", b"1"), ("./a.csv", b"2")], "has the name of another member"),
        ([("A.csv", b"1"), ("a.csv", b"2")], r"member 'a\.csv' has the name of another member"),
        ([("a", b"1"), ("a/b", b"2")], "member 'a/b' has the name of another member"),
        ([("a/b", b"1"), ("a", b"2")], "member 'a' has the name of another member"),
    ],
)
def test_harmful_members_are_refused_before_anything_is_unpacked(tmp_path, members, message):
    folder = tmp_path / "project" / "server_data"
    _zip(folder, [("server_test.csv", b"fine"), *members])
    with pytest.raises(DataError, match=message + ".*nothing was unpacked"):
        unpack_server_data(folder)
    assert _left(folder) == ["server_data.zip"]
    assert _left(tmp_path / "project") == ["server_data"]


def test_an_encrypted_member_is_refused(tmp_path):
    archive = _zip(tmp_path, [("a.csv", b"secret")])
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the zip's directory
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"member 'a\.csv' is encrypted"):
        unpack_server_data(tmp_path)


def test_a_zip_bomb_is_refused_by_its_total_size(tmp_path):
    archive = _zip(tmp_path, [(f"{i}.bin", bytes(2_000_000)) for i in range(5)], compression=zipfile.ZIP_DEFLATED)
    assert archive.stat().st_size < 20_000
    with pytest.raises(DataError, match=r"would unpack to 10,000,000 bytes, more than dataset.server_max_bytes = 9,999,999"):
        unpack_server_data(tmp_path, max_bytes=9_999_999)
    assert _left(tmp_path) == ["server_data.zip"]
    assert unpack_server_data(tmp_path, max_bytes=10_000_000)


def test_a_member_that_lies_about_its_size_is_not_unpacked(tmp_path):
    archive = _zip(tmp_path, [("a.bin", bytes(2_000_000))], compression=zipfile.ZIP_DEFLATED)
    content = archive.read_bytes()
    lie = content.replace((2_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    assert lie != content
    archive.write_bytes(lie)
    with pytest.raises(DataError, match="is not a sound zip"):
        unpack_server_data(tmp_path, max_bytes=1000)
    assert _left(tmp_path) == ["server_data.zip"]


def test_another_file_than_the_digest_says_is_refused(tmp_path):
    _zip(tmp_path, [("server_test.csv", b"x")])
    with pytest.raises(DataError, match=r"its SHA-256 is [0-9a-f]{64}, not 0{64} as dataset.server_sha256 says"):
        unpack_server_data(tmp_path, sha256="0" * 64)
    with pytest.raises(DataError, match=r"dataset.server_sha256 is 'abc'; expected the 64 hex digits"):
        unpack_server_data(tmp_path, sha256="abc")
    assert _left(tmp_path) == ["server_data.zip"]


@pytest.mark.parametrize("damage", ["html", "cut", "bit"])
def test_a_damaged_zip_is_refused(tmp_path, damage):
    archive = _zip(tmp_path, [("a.bin", b"content that is stored as it is")])
    content = archive.read_bytes()
    if damage == "html":
        archive.write_bytes(b"<html>quota exceeded</html>")
    elif damage == "cut":
        archive.write_bytes(content[:-30])
    else:
        archive.write_bytes(content.replace(b"stored", b"stOred"))
    with pytest.raises(DataError, match=r"is not a sound zip .*remove it and fetch it again"):
        unpack_server_data(tmp_path)
    assert _left(tmp_path) == ["server_data.zip"]


def test_an_incomplete_folder_in_the_way_is_named(tmp_path):
    _zip(tmp_path, [("server_test.csv", b"x")])
    (tmp_path / "server_data").mkdir()
    with pytest.raises(DataError, match="is in the way of unpacking"):
        unpack_server_data(tmp_path)


@pytest.fixture
def web(tmp_path, monkeypatch):
    """The address of a folder on a web server of this machine."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "web"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_missing_zip_is_fetched_once(tmp_path, web):
    folder, url = web
    archive = _zip(folder, [("server_test.csv", b"rows")])
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    target = tmp_path / "server_data"
    assert unpack_server_data(target, url=f"{url}/server_data.zip", sha256=digest)
    assert (target / "server_data" / "server_test.csv").read_bytes() == b"rows"
    assert _left(target) == ["server_data", "server_data.zip"]


def test_a_download_larger_than_the_limit_is_stopped(tmp_path, web):
    folder, url = web
    _zip(folder, [("server_test.csv", bytes(3_000_000))])
    with pytest.raises(DataError, match=r"sends more than dataset.server_max_bytes = 1,000,000 bytes"):
        unpack_server_data(tmp_path / "server_data", url=f"{url}/server_data.zip", max_bytes=1_000_000)
    assert _left(tmp_path / "server_data") == []


def test_a_page_that_is_not_there_is_explained(tmp_path, web):
    with pytest.raises(DataError, match=r"cannot be fetched \(404 .*download it yourself and put it at .*server_data\.zip"):
        unpack_server_data(tmp_path / "server_data", url=f"{web[1]}/gone.zip")
    assert _left(tmp_path / "server_data") == []


def test_without_a_network_it_fails_at_once_and_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    begun = time.monotonic()
    with pytest.raises(DataError, match=r"cannot be fetched .*Instead, download it yourself .*dataset/server/.*server_url to null"):
        unpack_server_data(tmp_path / "server_data", url="http://127.0.0.1:9/server_data.zip")
    assert time.monotonic() - begun < 10


def test_a_link_that_is_none_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"dataset.server_url is 'drive'; expected a link that begins with https://"):
        unpack_server_data(tmp_path / "server_data", url="drive")
