"""A global mask from given scores, by fastalter and by its peers: see `bench.peers.compare`."""
