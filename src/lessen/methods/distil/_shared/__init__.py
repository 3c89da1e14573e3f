"""What methods of this family share: no cards."""
