"""Tools for people; what they compute lives on a floor below."""
