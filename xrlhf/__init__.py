"""xrlhf: from preference data to an aligned model, driven by recipes."""

from xrlhf.version import __version__

__all__ = ["__version__"]
