//! Our automation.

fn main() {}
