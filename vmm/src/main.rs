//! wirevm.
fn main() {}
