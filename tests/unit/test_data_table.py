import pytest

from fedmap.data.table import read_table
from fedmap.errors import DataError

LABELS = ("Action", "Comedy", "Romance", "Sci-Fi")
HEADER = "img_name,text,labels\n"


def _table(tmp_path, content):
    path = tmp_path / "train.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_rows_know_their_lines_even_after_fields_with_line_breaks(tmp_path):
    content = HEADER + 'a.jpg,"two\nlines, and ""quotes""",Comedy|Action\n\nb.jpg,,Sci-Fi\n,no poster,Romance\n'
    rows, bad = read_table(_table(tmp_path, content), LABELS)
    assert bad == []
    assert [(row.line, row.img_name, row.text, row.labels) for row in rows] == [
        (2, "a.jpg", 'two\nlines, and "quotes"', (0, 1)),
        (5, "b.jpg", "", (3,)),
        (6, "", "no poster", (2,)),
    ]
    assert [row.row_id for row in rows][:2] == ["a.jpg", "b.jpg"]
    assert rows[2].row_id.startswith("text-")


def test_byte_order_mark_windows_line_ends_column_order_and_extra_columns(tmp_path):
    content = b"\xef\xbb\xbflabels,year,text,img_name\r\nComedy,1999,caf\xc3\xa9,a.jpg\r\nnonsense,1,x,b.jpg\r\n"
    rows, bad = read_table(_table(tmp_path, content), LABELS)
    assert [(row.img_name, row.text, row.labels) for row in rows] == [("a.jpg", "café", (1,))]
    assert bad[0].line == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"the file is empty; expected the header img_name,text,labels"),
        ("\n\n", r"the file is empty"),
        ("img_name,labels\na,b\n", r"column 'text' is missing: the header is 'img_name,labels', expected 'img_name,text,labels'"),
        ("img_name;text;labels\n", r"column 'img_name' is missing: .*separate the columns by commas"),
        ("img_name,text,labels,text\n", r"column 'text' appears more than once"),
        (b"\xff\xfei\x00m\x00", r"the file is UTF-16; save it as UTF-8"),
        (b"img_name,text,labels\na.jpg,caf\xe9,Comedy\n", r"line 2: byte 0xe9 at offset 30 is not UTF-8; .*Latin-1"),
        (b"\xef\xbb\xbfimg_name,text,labels\na.jpg,caf\xe9,Comedy\n", r"line 2: byte 0xe9 at offset 33 is not UTF-8"),
        (HEADER + 'a.jpg,ok,Comedy\nb.jpg,"never closed,Comedy\nc.jpg,x,Comedy\n', r"line 3: the row that begins here is not valid CSV"),
        (HEADER + 'a.jpg,"stray" quote,Comedy\n', r"line 2: the row that begins here is not valid CSV"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_as_a_whole(tmp_path, content, message):
    with pytest.raises(DataError, match=r"train\.csv[:,] .*" + message if "line" not in message else r"train\.csv, " + message):
        read_table(_table(tmp_path, content), LABELS)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.csv: cannot be read: No such file"):
        read_table(tmp_path / "gone.csv", LABELS)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a.jpg,text,Comdy", "unknown label 'Comdy'; did you mean 'Comedy'?"),
        ("a.jpg,text,comedy", "unknown label 'comedy'; did you mean 'Comedy'?"),
        ("a.jpg,text,Western", "unknown label 'Western'; labels.json has Action, Comedy, Romance, Sci-Fi"),
        ("a.jpg,text,", "labels is ''; expected label names separated by '|'"),
        ("a.jpg,text,Comedy||Action", "labels is 'Comedy||Action'"),
        (",,Comedy", "img_name and text are both empty"),
        (" ,  ,Comedy", "img_name and text are both empty"),
        ("a.jpg,nan,Comedy", "the text is 'nan', which programs write for a missing value"),
        ("a.jpg,NaN,Comedy", "the text is 'NaN'"),
        ("../a.jpg,text,Comedy", "img_name '../a.jpg' is not a plain file name"),
        ("/etc/passwd,text,Comedy", "is not a plain file name"),
        ("..\\a.jpg,text,Comedy", "is not a plain file name"),
        ("..,text,Comedy", "is not a plain file name"),
        ("a\x00.jpg,text,Comedy", "is not a plain file name"),
        ("a" * 300 + ".jpg,text,Comedy", "img_name is 304 bytes long"),
        ("a.jpg,Hello, world,Comedy", "has 4 fields where the header has 3; a text with commas stands in double quotes"),
        ("a.jpg,text", "has 2 fields where the header has 3"),
        ("ok.jpg,another,Action", "'ok.jpg' is in this file already, in line 2"),
        (",lonely text,Action", "a row without poster and with the same text is in this file already, in line 3"),
    ],
)
def test_bad_rows_are_told_apart_from_good_ones(tmp_path, row, reason):
    content = HEADER + "ok.jpg,fine,Comedy\n,lonely text,Comedy\n" + row + "\nlast.jpg,fine too,Action\n"
    rows, bad = read_table(_table(tmp_path, content), LABELS)
    assert [row.line for row in rows] == [2, 3, 5]
    assert len(bad) == 1
    assert bad[0].line == 4
    assert reason in bad[0].reason
    assert str(bad[0]).startswith(f"{tmp_path / 'train.csv'}, line 4: ")
