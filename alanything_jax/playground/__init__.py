"""A procedural any-to-any world whose instructions a program can check. No download."""
