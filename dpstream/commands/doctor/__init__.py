"""`dpstream doctor`: checks this machine; labels one structure for real."""
