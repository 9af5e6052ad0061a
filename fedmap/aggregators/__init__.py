"""One file per paper; pure functions of state and updates: no Flower, no HTTP, no logging."""
