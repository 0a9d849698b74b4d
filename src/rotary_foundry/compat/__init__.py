"""Private parts of other libraries that this project uses, one file for each library."""
