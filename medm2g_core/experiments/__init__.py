"""What this repository tried out: ablations, the unseen person, training budgets, its marks."""
