"""What a stopped run continues from: states as bytes, the server's checkpoints after each round, and the clients' memories."""

from fedmap.checkpoint.codec import load_state, save_state, state_from_bytes, state_to_bytes
from fedmap.checkpoint.memories import Memories, prune_runs
from fedmap.checkpoint.rounds import Checkpoint, Checkpoints, Found

__all__ = ["Checkpoint", "Checkpoints", "Found", "Memories", "load_state", "prune_runs", "save_state", "state_from_bytes", "state_to_bytes"]
