"""Skeletons of a user's own task, each with a small made-up data set; `fedward template` writes them."""
