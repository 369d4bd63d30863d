//! Makes a guest's root of an image by hand: `cargo run -p boot --example image -- SRC erofs|cpio OUT`.

use std::error::Error;
use std::path::Path;

use boot::image::{Cache, Format, Limits, root};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [source, format, out] = &arguments[..] else { return Err("usage: image SRC erofs|cpio OUT".into()) };
    let format = if format == "cpio" { Format::Cpio } else { Format::Erofs };
    let root = match root(Path::new(source), format, &Cache::of_user()?, Limits::default()) {
        Ok(root) => root,
        Err(error) => {
            eprintln!("error: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprintln!("  because {cause}");
                source = cause.source();
            }
            eprintln!("  try: {}", error.remedy());
            std::process::exit(1);
        }
    };
    eprintln!("{} {:?}", if root.cached { "cached" } else { "made" }, root.config);
    // A copy that keeps the holes.
    let from = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&root.file));
    let status = std::process::Command::new("cp").args(["--sparse=always", &from, out]).status()?;
    std::process::exit(status.code().unwrap_or(1));
}
