import gluon_resnetv2  # noqa: F401  # prepares the runtime before any test imports MXNet
