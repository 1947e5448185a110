"""Recordings, the simulated robot and reports."""
