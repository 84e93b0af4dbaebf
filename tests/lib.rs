//! The tests of this package stand in its subfolders; the library is empty.
