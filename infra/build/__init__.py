"""Locked versions, the bill of materials, and generated reference pages."""
