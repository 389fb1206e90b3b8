"""What computes an exported network: MXNet's graph, plain or fused, and the native operator."""
