"""Tasks of codecs: pictures on a wire."""
