"""The tests: a folder for each layer, one for the house they stand in, and what they share."""
