"""The tests mirror the rooms; what crosses them lies here; helpers are in support."""
