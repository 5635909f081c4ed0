"""Admission rules for an opted-in pod: what is injected, what is state, under which uid, and what is refused."""
