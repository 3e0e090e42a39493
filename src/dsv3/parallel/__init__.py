"""Rank lists and token dispatch: how one model is spread over ranks."""
