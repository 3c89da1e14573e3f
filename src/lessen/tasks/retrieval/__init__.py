"""Sentence encoders judged by what they find and by how alike they hold texts."""
