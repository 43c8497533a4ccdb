"""What is left of a network: the plan of what each tensor keeps, its file, the cut, and folded norms."""
