import json

import pytest

from fedmap.data.layout import DataLayout, find_poster, read_labels, read_modality
from fedmap.errors import DataError


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch):
    monkeypatch.delenv("LABELS_JSON_PATH", raising=False)


def _write(path, content="[]"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_labels_are_looked_for_in_the_documented_order(tmp_path, monkeypatch):
    layout = DataLayout(tmp_path)
    assert layout.find_labels() is None
    deeper = _write(tmp_path / "server_data" / "server_data" / "b" / "labels.json")
    _write(tmp_path / "server_data" / "server_data" / "a" / "deep" / "labels.json")
    assert layout.find_labels() == deeper
    first = _write(tmp_path / "server_data" / "server_data" / "a" / "labels.json")
    assert layout.find_labels() == first
    normalised = _write(tmp_path / "server_data" / "server_data" / "labels.json")
    assert layout.find_labels() == normalised
    shared = _write(tmp_path / "all_in_one_dataset" / "labels.json")
    assert layout.find_labels() == shared
    elsewhere = _write(tmp_path / "elsewhere" / "genres.json")
    monkeypatch.setenv("LABELS_JSON_PATH", str(elsewhere))
    assert layout.find_labels() == elsewhere


def test_labels_beside_the_normalised_server_root_are_found_last(tmp_path):
    outer = _write(tmp_path / "server_data" / "labels.json")
    (tmp_path / "server_data" / "server_data").mkdir()
    assert DataLayout(tmp_path).find_labels() == outer


def test_a_variable_that_names_no_file_is_an_error_not_a_fallback(tmp_path, monkeypatch):
    _write(tmp_path / "all_in_one_dataset" / "labels.json")
    monkeypatch.setenv("LABELS_JSON_PATH", str(tmp_path / "gone.json"))
    with pytest.raises(DataError, match=r"LABELS_JSON_PATH names .*gone\.json, which is not a file; correct it or unset it"):
        DataLayout(tmp_path).find_labels()


def test_the_server_root_descends_to_the_level_with_tables(tmp_path):
    layout = DataLayout(tmp_path)
    assert layout.server_root() == tmp_path / "server_data"
    inner = tmp_path / "server_data" / "server_data" / "server_data"
    inner.mkdir(parents=True)
    assert layout.server_root() == inner
    _write(tmp_path / "server_data" / "server_data" / "server_test.csv")
    assert layout.server_root() == tmp_path / "server_data" / "server_data"


def test_the_fast_path_of_server_tables_comes_first(tmp_path):
    layout = DataLayout(tmp_path)
    assert layout.server_tables() == {}
    nested = _write(tmp_path / "server_data" / "server_data" / "server_test.csv")
    assert layout.server_tables() == {"server_test.csv": nested}
    fast = [_write(tmp_path / "dataset" / "server" / name) for name in ("server_val.csv", "server_test.csv")]
    assert layout.server_tables() == {"server_val.csv": fast[0], "server_test.csv": fast[1]}


def test_posters_are_looked_for_in_the_shared_folder_first(tmp_path):
    layout = DataLayout(tmp_path)
    places = [
        tmp_path / "all_in_one_dataset" / "mmimdb_posters",
        tmp_path / "all_in_one_dataset" / "img",
        tmp_path / "server_data" / "server_data" / "mmimdb_posters",
        tmp_path / "server_data" / "server_data" / "img",
    ]
    for place in places:
        _write(place / "a.jpg")
    assert layout.poster_folders() == places
    assert find_poster(places, "a.jpg") == places[0] / "a.jpg"
    only = _write(places[3] / "b.jpg")
    assert find_poster(places, "b.jpg") == only
    assert find_poster(places, "c.jpg") is None


def test_clients_are_listed_in_numeric_order(tmp_path):
    for name in ("client_10", "client_2", "client_0", "client_x", "client_01", "server"):
        (tmp_path / "dataset" / name).mkdir(parents=True)
    _write(tmp_path / "dataset" / "client_5")  # a file
    assert DataLayout(tmp_path).client_ids() == [0, 2, 10]
    assert DataLayout(tmp_path / "nowhere").client_ids() == []


def test_labels_keep_their_order_and_may_carry_a_byte_order_mark(tmp_path):
    path = tmp_path / "labels.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(["Drama", "Action", "Sci-Fi"]).encode())
    assert read_labels(path) == ("Drama", "Action", "Sci-Fi")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "holds an object; expected a JSON list of unique label names"),
        ("[]", "the list is empty"),
        ("null", "holds null"),
        ('["A", 3]', "entry 2 is a number"),
        ('["A", ["B"]]', "entry 2 is a list"),
        ('["A", ""]', "entry 2 is ''"),
        ('["A", " B"]', "entry 2 is ' B'"),
        ('["A|B"]', r"entry 1 is 'A\|B'"),
        ('["A", "B", "A"]', "'A' is entry 1 and again entry 3"),
        ("[", "is not JSON in UTF-8"),
    ],
)
def test_malformed_labels_are_refused_with_what_was_found(tmp_path, content, message):
    with pytest.raises(DataError, match=rf"labels\.json: .*{message}"):
        read_labels(_write(tmp_path / "labels.json", content))


def test_labels_in_another_encoding_or_missing_are_refused(tmp_path):
    path = tmp_path / "labels.json"
    path.write_bytes('["Comédie"]'.encode("latin-1"))
    with pytest.raises(DataError, match="is not JSON in UTF-8"):
        read_labels(path)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read_labels(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"use_text": 1, "use_image": 0}', (True, False)),
        ('{"use_text": 0, "use_image": 1}', (False, True)),
        ('{"use_image": false}', (True, False)),
        ("{}", (True, True)),
    ],
)
def test_modality_files(tmp_path, content, expected):
    assert read_modality(_write(tmp_path / "modality.json", content)) == expected


def test_without_a_modality_file_both_are_used(tmp_path):
    assert read_modality(tmp_path / "modality.json") == (True, True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"use_text": 0, "use_image": 0}', "use_text and use_image are both 0"),
        ('{"use_txt": 1}', "unknown key 'use_txt'"),
        ('{"use_text": 2}', "use_text is 2, not 0 or 1"),
        ('{"use_text": "1"}', 'use_text is "1", not 0 or 1'),
        ('{"use_text": null}', "use_text is null, not 0 or 1"),
        ("[1, 0]", "holds a list"),
        ("use_text: 1", "is not JSON in UTF-8"),
    ],
)
def test_malformed_modality_files_are_refused(tmp_path, content, message):
    with pytest.raises(DataError, match=rf'modality\.json: .*{message}.*expected for example \{{"use_text": 1'):
        read_modality(_write(tmp_path / "modality.json", content))
