"""FedMAP: multimodal federated learning with metadata-driven, evaluation-guided aggregation."""

__version__ = "0.1.0"
