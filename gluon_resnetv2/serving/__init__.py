"""The server: protocol, batching, HTTP, the page; and MLServer's runtime."""
