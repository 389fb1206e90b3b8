"""What `model-settings.json` of exports up to version 0.2 names; it is `serving.mlserver` today."""

from gluon_resnetv2.serving.mlserver import Runtime

__all__ = ["Runtime"]
