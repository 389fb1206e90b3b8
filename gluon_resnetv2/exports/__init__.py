"""What we write and vouch for: exports, their verification, ONNX, files for platforms."""

SERVERS = ("mlserver",)  # whose settings `export --for` writes beside a pair
