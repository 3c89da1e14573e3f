"""What several methods of this family do alike."""
