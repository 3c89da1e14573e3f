"""Models trained with other libraries, read into ours."""
