"""What payloads mean: descriptor sets of protobuf types, and upcasters of old event shapes."""
