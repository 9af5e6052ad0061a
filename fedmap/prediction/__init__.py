"""Predictions from the model of a run: the global one or a client's own, for one movie or a table of them, and why."""

from fedmap.prediction.predictor import Prediction, Predictor, newest_run, runs_with_models

__all__ = ["Prediction", "Predictor", "newest_run", "runs_with_models"]
