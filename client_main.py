"""Join a federation: `python client_main.py client_id=1 [key=value ...]`; keys and their meaning are in conf/config.yaml."""

import sys

import hydra
from omegaconf import DictConfig

from fedmap.config import CONF, check_overrides


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="client")
def main(cfg: DictConfig) -> None:
    from fedmap.flower.doors import join

    if status := join(cfg):
        sys.exit(status)


if __name__ == "__main__":
    check_overrides(sys.argv, "client")
    main()
