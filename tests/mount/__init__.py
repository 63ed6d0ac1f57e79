"""The host's own tools at work on a mounted dfuser."""
