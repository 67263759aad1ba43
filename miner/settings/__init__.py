"""The programs' settings and the reader that fills them."""
