"""The gRPC side of Everstate: the node's services and the client that speaks to them."""
