"""The operators' side: the HTTP API of control and read models; later the console."""
