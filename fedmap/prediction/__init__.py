"""Predictions from the model of a run: the global one or a client's own, for one movie or a table of them, and why.

predictor    `Predictor.open(folder)`, the model with its labels and thresholds
answer       one movie, with and without each modality
attribution  which words and which regions of the poster mattered
table        a CSV of movies, scored where its labels are known
worker       the same in a process of its own, for servers
"""
