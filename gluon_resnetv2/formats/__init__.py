"""Files that strangers may have written, read with bounds: pairs, manifests, weights."""
