"""The connection to a server: addresses, calls that survive its absence, and the client on top of them."""
