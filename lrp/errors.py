"""What can go wrong when a network is made ready for relevance propagation."""


class UnsupportedLayerError(ValueError):
    """A layer (or an addition, a product, a function call) that no rule covers; the message names it and its type."""


class UnknownLayerError(KeyError):
    """A layer name that the network does not have; the message lists some that it has."""

    def __str__(self) -> str:
        # KeyError would print the repr of the message.
        return str(self.args[0]) if self.args else ""
