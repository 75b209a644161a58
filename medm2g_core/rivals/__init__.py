"""Honest rivals of the model: simple predictors, and plain networks trained for the same CPU time
as the flow."""
