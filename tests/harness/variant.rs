//! The same tests once more, with guests on another transport or another carrier: `$WIREVM_TEST_VARIANT` is `mmio` or `vhost`.
//! A test that chooses these itself is the same in each.

use std::sync::OnceLock;

/// Which this run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// As a user has it without options: PCI, and wirevm's own threads.
    Usual,
    /// On `--transport mmio`.
    Mmio,
    /// With `vhost=on` on each wire that has it.
    Vhost,
}

/// What the environment says.
///
/// # Panics
/// It says a word that is none of these.
pub fn variant() -> Variant {
    static VARIANT: OnceLock<Variant> = OnceLock::new();
    *VARIANT.get_or_init(|| match std::env::var("WIREVM_TEST_VARIANT").as_deref() {
        Err(_) => Variant::Usual,
        Ok("mmio") => Variant::Mmio,
        Ok("vhost") => Variant::Vhost,
        Ok(other) => panic!("WIREVM_TEST_VARIANT={other}: it is mmio or vhost"),
    })
}

/// Whether wirevm counts the frames of its taps and macvtaps, and says at the end how many: the kernel does not.
pub fn counts_frames() -> bool {
    variant() != Variant::Vhost
}

/// The words of a `wirevm run` in this variant.
pub fn varied(args: &[&str]) -> Vec<String> {
    in_variant(variant(), args)
}

fn in_variant(variant: Variant, args: &[&str]) -> Vec<String> {
    let mut all: Vec<_> = args.iter().copied().map(str::to_owned).collect();
    let run = args.iter().position(|&arg| arg == "run");
    let Some(run) = run else { return all };
    let transport = args.iter().position(|&arg| arg == "--transport").and_then(|at| args.get(at + 1));
    match (variant, transport) {
        // The kernel carries frames on the other one.
        (Variant::Usual, _) | (Variant::Mmio, Some(_)) | (Variant::Vhost, Some(&"mmio")) => {}
        (Variant::Mmio, None) => {
            drop(all.splice(run + 1..run + 1, ["--transport", "mmio"].map(str::to_owned)))
        }
        (Variant::Vhost, _) => {
            for at in (1..all.len()).filter(|at| args[at - 1] == "--net") {
                if !args[at].starts_with("tun") && !args[at].contains("vhost=") {
                    all[at] += ",vhost=on";
                }
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_test_does_not_choose_is_chosen() {
        let words = |variant, text: &str| in_variant(variant, &text.split(' ').collect::<Vec<_>>()).join(" ");
        let all = "-v run --net tap --net tun=t0 --net bridge=b,vhost=off --kernel k";
        assert_eq!(words(Variant::Usual, all), all);
        assert_eq!(
            words(Variant::Mmio, all),
            "-v run --transport mmio --net tap --net tun=t0 --net bridge=b,vhost=off --kernel k"
        );
        assert_eq!(
            words(Variant::Vhost, all),
            "-v run --net tap,vhost=on --net tun=t0 --net bridge=b,vhost=off --kernel k"
        );
        let chosen = "run --transport pci --net tap";
        assert_eq!(words(Variant::Mmio, chosen), chosen);
        assert_eq!(words(Variant::Vhost, chosen), "run --transport pci --net tap,vhost=on");
        for variant in [Variant::Mmio, Variant::Vhost] {
            for chosen in ["run --transport mmio --net tap", "doctor --json"] {
                assert_eq!(words(variant, chosen), chosen);
            }
        }
    }
}
