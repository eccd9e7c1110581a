"""The fast way to the same numbers: one table of backends for the network, the random walk and the dense CRF."""
