"""Tests of the queue, which works as it is."""
