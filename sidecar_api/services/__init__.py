"""One module a gRPC service of the node."""
