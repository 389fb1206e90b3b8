"""Symbolic networks by MXNet's convention: `import_module('symbols.' + network).get_symbol(...)`."""
