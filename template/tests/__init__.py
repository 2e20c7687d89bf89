"""Tests of the service: few, to be copied for tasks of your own."""
