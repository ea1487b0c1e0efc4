//! The program `ballast`.

fn main() {}
