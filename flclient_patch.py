"""The hook for custom client logic: change this function, or name another one with `hooks.after_round=module.function`."""

from fedmap.records import ClientUpdate


def after_round(update: ClientUpdate) -> ClientUpdate:
    """Called on the client with each update before it is sent; return it, changed or not.

    Updates are frozen: make a changed copy with `dataclasses.replace`. A signal of your own travels like this:

        signals = replace(update.signals, custom={"battery": 0.8})
        return replace(update, signals=signals)

    With strategy=modality_aware, `server.strategy.custom_features={battery: higher}` makes it a feature that the weights may
    depend on. A signal that a client would rather keep to itself is set to None: it then counts as the middle client's.
    """
    return update
