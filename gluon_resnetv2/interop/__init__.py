"""Weights of other implementations, and other libraries that take our networks.

Nothing here imports a framework; its modules do.
"""

# The layouts of weights that `convert` knows, and the module that has each as NAME_IN_CAPITALS.
LAYOUTS = {
    "symbolic": "mxnet",
    "model-zoo": "mxnet",
    "gluoncv-cifar": "mxnet",
    "timm": "timm",
    "torch-fb": "torch",
    "torch-fb-cifar": "torch",
    "torch-kaiming": "torch",
    "torch-preresnet": "torch",
    "keras": "keras",
}
