"""Weights of other implementations, and other libraries that take our networks."""
