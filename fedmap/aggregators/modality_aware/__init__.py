"""ModalityAwareAggregation: weights for the clients' models, found by a search on the server's validation rows.

`aggregator` is one round from start to finish; `checks` and `features` turn what clients say and what the server sees into
numbers per client; `teacher` and `surrogate` search; `mixing` applies weights per modality; `student` learns to do
without the search; `objective` is what all of them maximise.
"""

from fedmap.aggregators.modality_aware.aggregator import ModalityAwareAggregation, ModalityAwareState

__all__ = ["ModalityAwareAggregation", "ModalityAwareState"]
