import json
from argparse import ArgumentParser
from pathlib import Path

import pytest

from benchmarks.harness import Options, Result, Table, Target, main, spread, summary
from fedmap.errors import DataError


def result(value: float) -> Result:
    return Result(
        settings={"rounds": 2},
        figures={"f1": [0.1, 0.4, 0.2]},
        tables=[Table("A [title]", ("method", "f1"), [("fedavg", 0.25), ("with [brackets]", "-")])],
        targets=[Target("better than chance", value, 0.5), Target("small", 1.0, 2.0, "<")],
        details={"scenarios": {"label": float("nan")}},
    )


def run(path: Path, value: float, *arguments: str) -> int:
    return main("sample", lambda _: result(value), argv=["--out", str(path), *arguments])


def test_the_result_file_holds_figures_with_median_and_spread_and_no_host_name(tmp_path: Path) -> None:
    import platform

    assert run(tmp_path / "sub" / "r.json", 0.75, "--check") == 0
    text = (tmp_path / "sub" / "r.json").read_text()
    content = json.loads(text, parse_constant=pytest.fail)
    assert content["figures"]["f1"] == {
        "values": [0.1, 0.4, 0.2],
        "median": 0.2,
        "mean": pytest.approx(0.7 / 3),
        "std": pytest.approx(0.1527525),
        "min": 0.1,
        "max": 0.4,
    }
    assert content["scenarios"] == {"label": None}
    assert content["machine"]["cores"] >= 1
    assert content["versions"]["packages"]["torch"]
    assert platform.node() not in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize("value", [0.49, float("nan"), float("inf")])
def test_check_names_each_missed_target(tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float) -> None:
    assert run(tmp_path / "r.json", value) == 0
    assert run(tmp_path / "r.json", value, "--check") == 1
    printed = capsys.readouterr().out
    assert "MISSED: better than chance" in printed
    assert "MISSED: small" not in printed


def test_quick_and_seeds_and_own_arguments_reach_the_benchmark(tmp_path: Path) -> None:
    seen: list[Options] = []

    def measure(options: Options) -> Result:
        seen.append(options)
        return Result()

    def own(parser: ArgumentParser) -> None:
        parser.add_argument("--data", type=Path)

    base = ["--out", str(tmp_path / "r.json")]
    for argv in ([], ["--quick"], ["--quick", "--seeds", "4", "--data", "x"]):
        assert main("sample", measure, seeds=5, quick_seeds=2, arguments=own, argv=base + argv) == 0
    assert [(o.quick, o.seed_list()) for o in seen] == [(False, [0, 1, 2, 3, 4]), (True, [0, 1]), (True, [0, 1, 2, 3])]
    assert seen[-1].extra.data == Path("x")
    with pytest.raises(SystemExit):
        main("sample", measure, argv=["--seeds", "0"])


def test_an_input_error_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def measure(options: Options) -> Result:
        raise DataError("movies.csv is missing")

    assert main("sample", measure, argv=["--out", str(tmp_path / "r.json")]) == 2
    assert capsys.readouterr().out == "benchmarks.sample: movies.csv is missing\n"
    assert not (tmp_path / "r.json").exists()


def test_targets_and_cells() -> None:
    assert Target("a", 1.0, 1.0, "==").met
    assert not Target("a", 1.0, 1.0, ">").met
    with pytest.raises(ValueError, match="none of >="):
        Target("a", 1.0, 1.0, "=>")
    assert spread([1.0, 2.0], 1) == "1.5 ± 0.7"
    assert spread([1.0]) == "1.000"
    assert summary([3])["std"] == 0.0
    with pytest.raises(ValueError, match="at least one"):
        summary([])


def test_details_may_not_hide_the_harness_keys(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="machine"):
        main("sample", lambda _: Result(details={"machine": 1}), argv=["--out", str(tmp_path / "r.json")])
