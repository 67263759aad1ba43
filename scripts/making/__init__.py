"""Making objects for people: what `text_to_3d` and `image_to_3d` have in common."""
