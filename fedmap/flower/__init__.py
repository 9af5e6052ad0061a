"""Flower's side of FedMAP: the only package that imports flwr."""
