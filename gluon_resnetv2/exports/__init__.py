"""What we write and vouch for: exports, their verification, ONNX, files for platforms."""
