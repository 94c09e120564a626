"""The command line: parses, calls one function of a layer below, prints. No maths here."""
