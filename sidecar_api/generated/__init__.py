"""Generated from protocols/ by `make protos`; never edited by hand."""
