"""The data front: what a user replaces for other data; run as a script it imports, generates and partitions movies.

python data_preparation.py source=synthetic
python data_preparation.py path=/data/movies seed=7 policy=dirichlet alpha=0.3 clients=8
python data_preparation.py --help
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fedmap.config import CONF, compose
from fedmap.errors import FederationError

if TYPE_CHECKING:
    from fedmap.data.movies import MovieData as MovieData

CONFIG = "data_preparation"


def __getattr__(name: str) -> Any:
    """`data_preparation.MovieData`, the default `dataset._target_`, is loaded when it is asked for: it needs torch."""
    if name == "MovieData":
        from fedmap.data.movies import MovieData

        return MovieData
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main(arguments: Sequence[str]) -> int:
    """Prepare a data set from key=value arguments; 0 if it is in place, 2 after an error."""
    if {"-h", "--help"} & set(arguments):
        explained = (CONF / f"{CONFIG}.yaml").read_text(encoding="utf-8")
        print(f"{__doc__}\nSettings and their defaults:\n\n{explained}")
        return 0
    from omegaconf import OmegaConf

    from fedmap.data.prepare import describe, prepare

    try:
        settings: Any = OmegaConf.to_container(compose(CONFIG, arguments), resolve=True)
        print(describe(prepare(**settings)))
    except FederationError as error:
        print(f"data_preparation: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
