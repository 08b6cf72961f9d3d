"""How ``setup.py`` builds the extension: the compilers that are there, and a file for ninja."""
