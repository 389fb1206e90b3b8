"""Training with several processes. What is here itself needs no MXNet."""

PARAMETER_SERVER = ("dist_sync", "dist_device_sync", "dist_async")  # MXNet's kvstores
