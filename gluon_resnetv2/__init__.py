"""Identity Mappings in Deep Residual Networks (ResNet v2) for MXNet Gluon.

Importing it first lets `import mxnet` work on today's Python and numpy (see `runtime`); it does
not import MXNet itself.
"""

from gluon_resnetv2 import runtime

runtime.prepare()
