"""Tests of the arq service under faults: real processes, real servers, real signals."""
