//! Makes a small initrd by hand: `cargo run -p boot --example modules -- KERNEL|- MODULE... >initrd`. Its init says that it is none.

use std::error::Error;
use std::io::Write;
use std::path::Path;

use boot::modules::{Loaded, Modules, default_kernel, directory, initrd, kernel_version};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((kernel, wanted)) = arguments.split_first() else {
        return Err("usage: modules KERNEL|- MODULE...".into());
    };
    let kernel = if kernel == "-" { default_kernel()? } else { kernel.into() };
    let version = kernel_version(&kernel)?;
    let directory = directory(Path::new(&kernel), version.as_deref(), None)?;
    eprintln!("{} is {version:?}, its modules are in {directory:?}", kernel.display());
    let modules = directory.map_or_else(|| Ok(Modules::none()), |directory| Modules::open(&directory))?;
    let resolution = modules.resolve(&wanted.iter().map(|name| &name[..]).collect::<Vec<_>>())?;
    eprintln!("{resolution:#?}");
    let objects = resolution.load.iter().map(|module| module.read()).collect::<Result<Vec<_>, _>>()?;
    let loaded: Vec<_> = resolution
        .load
        .iter()
        .zip(&objects)
        .map(|(module, object)| Loaded { name: &module.name, object })
        .collect();
    std::io::stdout().write_all(&initrd(b"#!/none\n", b"{}\n", &loaded, true))?;
    Ok(())
}
