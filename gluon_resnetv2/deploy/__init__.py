"""Exports: written, verified, computed with and served; and pairs that anybody may have written."""
