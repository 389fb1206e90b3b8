"""Identity Mappings in Deep Residual Networks (ResNet v2) for MXNet Gluon.

Importing it first lets `import mxnet` work on today's Python and numpy (see `fixes`); it does
not import MXNet itself.
"""

from gluon_resnetv2 import fixes

__version__ = "0.2.0"

fixes.prepare()


def __getattr__(name: str):
    # The public names, brought in when they are used: they need MXNet, which takes seconds.
    if name in ("ResNetV2", "he_normal"):
        from gluon_resnetv2 import net

        return getattr(net, name)
    if name == "get_model":
        from gluon_resnetv2.interop import zoo

        return zoo.get_model
    raise AttributeError(f"module 'gluon_resnetv2' has no attribute '{name}'")
