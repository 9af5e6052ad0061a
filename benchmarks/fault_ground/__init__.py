"""Faults on purpose: in a client's own code, on the network between client and server, and to whole processes."""
