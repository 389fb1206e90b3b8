"""Where the time of a step goes: by oneDNN primitive, by layer and by MXNet operator."""
