"""What happens on a client: one training loop, with the algorithm's client half as a rule."""
