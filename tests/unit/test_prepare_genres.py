"""Label sets: the 23 genres, what is found, a file, mappings, and unknown labels."""

from __future__ import annotations

import pytest

from fedmap.data.genres import DROPPED, MMIMDB23, LabelSet, split_labels
from fedmap.errors import DataError


def test_there_are_23_genres_and_4_dropped_ones():
    assert len(set(MMIMDB23)) == 23
    assert list(MMIMDB23) == sorted(MMIMDB23)
    assert len(DROPPED) == 4
    assert not DROPPED & set(MMIMDB23)


def test_auto_takes_those_of_the_23_that_occur_for_movies_and_else_what_is_found():
    assert LabelSet.resolve("auto", ["War", "Drama", "News"], {}).names == ("Drama", "War")
    assert LabelSet.resolve("auto", MMIMDB23, {}).names == MMIMDB23
    assert LabelSet.resolve("mmimdb23", ["Drama"], {}).names == MMIMDB23
    assert LabelSet.resolve("auto", ["cat", "dog", "War"], {}).names == ("War", "cat", "dog")
    assert LabelSet.resolve("found", ["War", "Drama"], {}).names == ("Drama", "War")


def test_raw_genres_are_dropped_and_labels_come_in_the_order_of_the_set():
    labels = LabelSet.resolve("mmimdb23", [], {"Children": "Family", "N/A": None})
    assert labels(["War", "News", "Children", "N/A", "Action"]) == ("Action", "Family", "War")
    assert labels(["Talk-Show", "N/A"]) == ()


def test_an_unknown_label_names_the_nearest_and_the_way_to_map_it():
    labels = LabelSet.resolve("auto", ["Drama", "War", "SciFi"], {})
    with pytest.raises(DataError, match=r"unknown label 'SciFi' \(did you mean 'Sci-Fi'\?\).*\+label_map\.SciFi=<label>"):
        labels(["SciFi"])


def test_labels_from_a_file(tmp_path):
    path = tmp_path / "names.json"
    path.write_text('["b", "a"]')
    assert LabelSet.resolve(str(path), ["a"], {}).names == ("b", "a")
    for content, message in (("{", "not a JSON file"), ('{"a": 1}', "expected a JSON list"), ('["a", "a"]', "different label names")):
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            LabelSet.resolve(str(path), ["a"], {})
    with pytest.raises(DataError, match="labels=mmimdb: expected auto, mmimdb23, found or the path"):
        LabelSet.resolve("mmimdb", ["a"], {})


def test_a_mapping_onto_an_unknown_label_and_a_source_without_labels_are_errors():
    with pytest.raises(DataError, match=r"label_map maps 'Children' to 'Famly', .* \(did you mean 'Family'\?\)"):
        LabelSet.resolve("mmimdb23", ["Drama"], {"Children": "Famly"})
    with pytest.raises(DataError, match="no labels at all"):
        LabelSet.resolve("found", [], {})


def test_labels_of_one_field():
    assert split_labels(" Drama | War|Drama|") == ("Drama", "War")
    assert split_labels("Drama, War") == ("Drama", "War")
    assert split_labels("") == ()
