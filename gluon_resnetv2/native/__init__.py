"""Networks on a current oneDNN: everything up to the features as one operator of our own.

Needs the extra `native` and a C++ compiler. What is exported is the portable network all the same.
Nothing here imports a framework; its modules do.
"""

# What --engine takes: MXNet's operators, or the native one as well.
ENGINES = ("mxnet", "native")
