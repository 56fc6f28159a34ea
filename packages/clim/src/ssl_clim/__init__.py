"""CLIM: images are mixed with neighbours that lie nearer to their cluster's center, and attracted to both."""
