"""The command line `python -m fedmap`: what one does with runs once they are there. Each command is imported when it is used."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fedmap.errors import FederationError

_EPILOG = """\
where to begin:
  python -m fedmap demo                               made-up movies, five clients, one federated model, in a minute or two
  python data_preparation.py --help                   your own data: a CSV with posters, or MM-IMDb
  python server_main.py runtime=local model=tiny      train on this machine; every run leaves outputs/<date>/<time>
  python server_main.py, python client_main.py        train across processes or machines

then, with a run's folder:
  python -m fedmap predict --poster poster.jpg --text "A robot falls in love."
  python -m fedmap report outputs/2026-11-21/10-00-00
  python -m fedmap compare outputs/2026-11-21/*

`python -m fedmap COMMAND --help` explains one command. Exit status: 0 done, 1 not as good as it must be (demo), 2 a mistake.
"""

_PREDICT = """\
examples:
  python -m fedmap predict --poster poster.jpg --text "A robot falls in love."
  python -m fedmap predict --run outputs/2026-11-21/10-00-00 --text "A robot falls in love." --explain
  python -m fedmap predict --client 3 --poster poster.jpg --json
  python -m fedmap predict --table movies.csv --posters posters/ --out predictions.csv

A table has the columns img_name and text, as the data has; either may be empty in a row. With a column labels
(Drama|Romance) the predictions are scored, too.
"""

_CERTS = """\
actions:
  init        an authority and the server's certificate
  add K       accept client K: make its key here, or take one with --public-key
  key K       on client K's machine: make its key there, so that the private half never travels
  revoke K    accept client K's key no longer; a running server cuts it off within seconds
  server      a new server certificate; the old one is kept aside
  list        what there is, and when it expires

examples:
  python -m fedmap certs init --host fl.example.org --clients 3
  python -m fedmap certs add 3
  python -m fedmap certs revoke 1
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fedmap",
        description="FedMAP: train one model from text and images across clients that keep their data, and use it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, help: str, where: str, description: str = "", epilog: str = "") -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=help, description=description or help, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        made.set_defaults(where=where)
        return made

    predict = command(
        "predict",
        "genres of a movie, or of a table of movies",
        "fedmap.cli.predict",
        "Predict with the model of a run, from a poster, a plot, or both.",
        _PREDICT,
    )
    which = predict.add_argument_group("which model")
    which.add_argument("--run", type=Path, metavar="FOLDER", help="outputs/<date>/<time>, or a saved model (default: the newest run)")
    which.add_argument("--model", choices=("best", "last"), default="best", help="after the best round on validation, or the last one")
    which.add_argument("--client", type=int, metavar="K", help="client K's own model, where the strategy lets clients differ")
    which.add_argument("--data", type=Path, metavar="FOLDER", help="with --client: where the client's data lies, if it has moved")
    which.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    one = predict.add_argument_group("one movie")
    one.add_argument("--poster", type=Path, metavar="FILE", help="a JPEG, PNG, WebP, GIF or BMP picture")
    one.add_argument("--text", metavar="PLOT", help="the plot")
    one.add_argument("--explain", action="store_true", help="also the words and the regions of the poster that mattered")
    one.add_argument("--json", action="store_true", help="JSON instead of a table")
    many = predict.add_argument_group("many movies")
    many.add_argument("--table", type=Path, metavar="CSV", help="a table with the columns img_name and text, and labels if they are known")
    many.add_argument("--posters", type=Path, action="append", default=[], metavar="FOLDER", help="where img_name is looked up")
    many.add_argument("--out", type=Path, metavar="FILE", help="predictions as .csv or .json (default: CSV on the terminal)")
    many.add_argument("--skip-bad", action="store_true", help="leave bad rows out and name them, instead of stopping")

    report = command("report", "a run's report, as Markdown and as one HTML file", "fedmap.cli.report")
    report.add_argument("run", type=Path, metavar="RUN", help="outputs/<date>/<time>")
    report.add_argument("--out", type=Path, metavar="FILE", help="write the HTML here, too")

    compare = command("compare", "several runs side by side", "fedmap.cli.compare")
    compare.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="outputs/<date>/<time>; runs that have not finished are named")
    compare.add_argument("--html", type=Path, metavar="FILE", help="also write the comparison as one HTML file")

    dashboard = command("dashboard", "look at past and running runs in a browser", "fedmap.cli.dashboard")
    dashboard.add_argument("outputs", type=Path, nargs="?", default=Path("outputs"), help="the folder of the runs (default outputs)")
    dashboard.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: this machine alone)")
    dashboard.add_argument("--port", type=int, default=8080, help="0 takes any free one (default 8080)")

    dashboard.add_argument("--certs", type=Path, metavar="FOLDER", help="serve https with the server's certificate of this folder")
    dashboard.add_argument("--insecure", action="store_true", help="allow other machines without --certs, unencrypted")
    dashboard.add_argument(
        "--token-file",
        type=Path,
        default=Path(".fedmap/token"),
        metavar="FILE",
        help="what writing needs (default .fedmap/token; made at first start)",
    )

    certs = command("certs", "certificates and keys for security=tls", "fedmap.cli.certs", epilog=_CERTS)
    certs.add_argument(
        "action", nargs="?", default="init", choices=("init", "add", "key", "revoke", "server", "list"), help="what to do (default init)"
    )
    certs.add_argument("client", nargs="?", type=int, metavar="K", help="with add, key and revoke: the client's number")
    certs.add_argument("--folder", type=Path, default=Path("certs"), help="where the files lie (default certs/)")
    certs.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="NAME",
        help="init, server: a name or address of the server, may be repeated; add: of the client's own front",
    )
    certs.add_argument("--days", type=float, default=365.0, help="how long a certificate is good (default 365)")
    certs.add_argument("--clients", type=int, default=0, metavar="N", help="init: also make keys for clients 0 to N-1")
    certs.add_argument("--public-key", type=Path, metavar="FILE", help="add: accept the key that a client has made with `certs key`")

    demo = command("demo", "the demonstration behind `make demo`", "fedmap.cli.demo")
    demo.add_argument("--folder", type=Path, help="where data and runs go (default demo/)")
    demo.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="further settings, as for server_main.py")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    Args:
        arguments: the words after `python -m fedmap`; None takes them from the process.
    """
    parsed = _parser().parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return int(importlib.import_module(parsed.where).run(parsed))
    except FederationError as error:
        print(f"fedmap: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
