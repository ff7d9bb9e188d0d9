"""Secure aggregation: the coordinator learns a sum, and nothing else of what hospitals put into it. ``docs/privacy.md`` tells the protocol step by step."""
