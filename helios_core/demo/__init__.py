"""The embedded demo: the smallest Helios that truly works, in a toy world of its own (see `world` and MODEL_CARD.md)."""

from .model import DEMO_CONFIG, DEMO_SETTINGS, DemoModel

__all__ = ["DEMO_CONFIG", "DEMO_SETTINGS", "DemoModel"]
