"""Symbolic networks, found as MXNet's example does: `import_module("symbols." + network)`."""
