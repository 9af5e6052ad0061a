"""Serve a federation: `python server_main.py [key=value ...]`; keys and their meaning are in conf/config.yaml."""

import sys

import hydra
from omegaconf import DictConfig

from fedmap.config import CONF, check_overrides


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> None:
    from fedmap.flower.doors import serve

    if status := serve(cfg):
        sys.exit(status)


if __name__ == "__main__":
    check_overrides(sys.argv)
    main()
