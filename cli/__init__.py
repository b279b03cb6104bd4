"""Millstream: an embedded stream store and processor."""
