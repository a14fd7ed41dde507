"""How much of a network can go: what recovers it, how it is searched, and what it buys."""
