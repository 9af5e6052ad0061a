"""The errors a user can meet. Each message names what is wrong, what was expected and how to mend it."""


class FederationError(Exception):
    """Base class of every error that FedMAP raises on purpose."""


class ConfigError(FederationError):
    """The configuration contradicts itself or names something that does not exist."""


class DataError(FederationError):
    """A data file, row or folder is missing or malformed."""


class ModelError(FederationError):
    """A model or its pretrained weights cannot be built or loaded."""


class UpdateError(FederationError):
    """A client's update does not fit the server's model or is not a valid update.

    Attributes:
        code: why, as one of `fedmap.reasons.Reason`.
    """

    def __init__(self, message: str = "", code: str = "malformed") -> None:
        super().__init__(message)
        self.code = code


class QuorumError(FederationError):
    """Too few clients joined or answered for the run to go on."""


class ClientMemoryError(FederationError):
    """A client's processor or GPU has too little memory for what it was asked to do."""


class CheckpointError(FederationError):
    """A checkpoint or a client's saved memory cannot be read or written."""


class StorageError(FederationError):
    """A file or folder cannot be written, or another process is using it."""
