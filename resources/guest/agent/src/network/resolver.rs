//! `/etc/resolv.conf`, of what each NIC's server says.

use std::fs;
use std::net::Ipv4Addr;

/// What each NIC's server said, in a file of the NIC's name.
const KNOWN: &str = "/run/wirevm-agent/dns";
const FILE: &str = "/etc/resolv.conf";

/// Has programs ask these servers, and look for names in these domains, beside those of other NICs.
pub(super) fn tell(nic: &str, servers: &[Ipv4Addr], search: &[String]) {
    let known =
        fs::create_dir_all(KNOWN).and_then(|()| fs::write(format!("{KNOWN}/{nic}"), lines(servers, search)));
    if known.is_err() {
        return;
    }
    let mut nics: Vec<_> =
        fs::read_dir(KNOWN).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    nics.sort();
    let text: Vec<_> = nics.iter().filter_map(|path| fs::read_to_string(path).ok()).collect();
    let _ = fs::create_dir_all("/etc");
    // A link to where another resolver would have it leads to nothing here.
    if fs::symlink_metadata(FILE).is_ok_and(|file| file.is_symlink()) && fs::metadata(FILE).is_err() {
        let _ = fs::remove_file(FILE);
    }
    // A root that nobody can write to keeps what it has.
    let _ = fs::write(FILE, merged(&text));
}

fn lines(servers: &[Ipv4Addr], search: &[String]) -> String {
    let servers: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    match search {
        [] => servers,
        search => format!("search {}\n{servers}", search.join(" ")),
    }
}

/// One file of several NICs' lines: of more than one `search` line only the last would count.
fn merged(texts: &[String]) -> String {
    let lines = || texts.iter().flat_map(|text| text.lines());
    let search: Vec<_> = lines().filter_map(|line| line.strip_prefix("search ")).collect();
    let mut all = if search.is_empty() { String::new() } else { format!("search {}\n", search.join(" ")) };
    for line in lines().filter(|line| line.starts_with("nameserver")) {
        all.push_str(line);
        all.push('\n');
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_nics_make_one_file() {
        let a = lines(&[Ipv4Addr::new(1, 1, 1, 1)], &["lan".to_owned()]);
        let b = lines(&[Ipv4Addr::new(9, 9, 9, 9)], &["a.example".to_owned(), "b.example".to_owned()]);
        let none = lines(&[], &[]);
        assert_eq!(none, "");
        assert_eq!(
            merged(&[a, none, b]),
            "search lan a.example b.example\nnameserver 1.1.1.1\nnameserver 9.9.9.9\n"
        );
    }
}
