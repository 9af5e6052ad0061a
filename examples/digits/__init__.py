"""Handwritten digits seen by two sensors: other modalities and other labels than movies, as a model for your own task."""
