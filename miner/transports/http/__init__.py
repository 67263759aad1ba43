"""HTTP: a form in, a PLY file out."""
