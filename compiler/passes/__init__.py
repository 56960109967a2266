"""The passes: each a function from a valid graph to a valid graph."""
