"""Private parts of other libraries that this project rests on, one file a library."""
