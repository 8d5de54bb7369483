"""How fedseal is run: the command line and the plans that come with it."""
