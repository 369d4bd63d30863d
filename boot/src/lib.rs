//! Boot.
#![forbid(unsafe_code)]
