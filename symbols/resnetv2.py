"""`gluon_resnetv2.symbols`, where MXNet's example looks for networks; copy this file into it."""

from gluon_resnetv2.symbols import get_symbol

__all__ = ["get_symbol"]
