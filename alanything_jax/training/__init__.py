"""The loop and its compiled parts."""
