"""What scores or answers for people: judges behind an endpoint, or in this process."""
