"""Methods: everything that turns an image and a phrase into a heat map."""
