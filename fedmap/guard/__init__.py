"""What stands between the clients' answers and the model; see `fedmap.guard.ladder` and docs/guides/hostile_updates.md."""

from fedmap.guard.form import Form
from fedmap.guard.ladder import Ladder, Refusal, Settled, climb
from fedmap.guard.measuring import check_model
from fedmap.guard.options import OFF, Defence
from fedmap.guard.state import GuardState

__all__ = ["OFF", "Defence", "Form", "GuardState", "Ladder", "Refusal", "Settled", "check_model", "climb"]
