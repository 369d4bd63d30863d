//! `wirevm doctor` as a person and a program read it, on hosts that lack something.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use harness::netns::Netns;
use harness::{TempDir, Vm, as_nobody, guest, handmade, need, puts, skip, wirevm_path};
use serde_json::Value;

/// What every host is told of, in this order.
const ALWAYS: [&str; 18] = [
    "KVM",
    "CAP_NET_ADMIN",
    "/dev/net/tun",
    "bridges",
    "macvtaps",
    "/dev/vhost-net",
    "agent",
    "kernel",
    "image cache",
    "virtiofsd",
    "io_uring",
    "ssh",
    "qemu-img",
    "nftables",
    "IPv4 forwarding",
    "IPv6 forwarding",
    "rp_filter",
    "left-overs",
];

guest!(forever: puts!("running\\n"), "2: hlt", "jmp 2b");

/// Runs `wirevm doctor` with these options in a mount namespace of its own, after `script`.
fn doctor(host: &Netns, script: &str, options: &str) -> Output {
    let script = format!("{script}\nexec \"$0\" doctor {options}");
    let mut command = host.command("unshare");
    command.args(["--mount", "sh", "-ec", &script]).arg(wirevm_path()).stdin(Stdio::null());
    command.output().expect("unshare starts")
}

/// What it says on standard output. Its status is 0 or 1, as KVM is, and it complains of nothing.
#[track_caller]
fn said(output: Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code().is_some_and(|status| status < 2) && errors.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The findings of `wirevm doctor --json`.
struct Findings(Vec<Value>);

impl Findings {
    #[track_caller]
    fn of(host: &Netns, script: &str) -> Self {
        Self::parse(&said(doctor(host, script, "--json")))
    }

    #[track_caller]
    fn parse(text: &str) -> Self {
        let mut object: Value = serde_json::from_str(text).expect("JSON");
        match object["findings"].take() {
            Value::Array(findings) => Self(findings),
            _ => panic!("no findings"),
        }
    }

    /// The one about `what`: whether it is good, how it is, and what to try.
    #[track_caller]
    fn get(&self, what: &str) -> (bool, &str, &str) {
        let found = self.0.iter().find(|finding| finding["what"] == what);
        let found = found.unwrap_or_else(|| panic!("no {what} in {:?}", self.0));
        let good = found["good"].as_bool().expect("true or false");
        (good, found["state"].as_str().expect("text"), found["try"].as_str().unwrap_or_default())
    }
}

#[test]
fn its_lines_are_for_a_person_and_its_json_says_the_same() {
    let host = need!(Netns::with_own_run());
    let output = doctor(&host, "", "");
    let status = output.status.code();
    let text = said(output);
    let json = Findings::of(&host, "");
    let mut lines = text.lines().peekable();
    for finding in &json.0 {
        let good = if finding["good"] == true { "good" } else { "BAD " };
        let line = lines.next().expect("a line for each finding");
        let (what, state) = (finding["what"].as_str().unwrap(), finding["state"].as_str().unwrap());
        // How fast KVM is differs each time.
        let state = state.split('(').next().unwrap();
        assert!(line.starts_with(&format!("{good}  {what:<16} {state}")), "{line}\n{finding}");
        if let Some(remedy) = finding["try"].as_str() {
            assert_eq!(lines.next().map(str::trim_start), Some(&format!("try: {remedy}")[..]));
        }
    }
    assert_eq!(lines.next(), None);
    let told: Vec<_> = json.0.iter().filter_map(|finding| finding["what"].as_str()).collect();
    let told: Vec<_> = told.into_iter().filter(|what| ALWAYS.contains(what)).collect();
    assert_eq!(told, ALWAYS);
    // The status is KVM's alone; so it is with --quiet, which says nothing.
    assert_eq!(status, Some(i32::from(!json.get("KVM").0)), "{text}");
    let quiet = doctor(&host, "", "--quiet");
    assert_eq!((quiet.status.code(), said(quiet)), (status, String::new()));
    assert_eq!(json.get("left-overs"), (true, "none", ""));
    assert!(json.get("rp_filter").1.starts_with("does not keep"));
}

#[test]
fn what_it_cleans_is_in_the_json() {
    let host = need!(Netns::with_own_run());
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, forever());
    let args = ["run", "--kernel", kernel.to_str().unwrap(), "--net", "bridge=br0"];
    let mut vm = Vm::start_in(&host, &args);
    vm.expect("running\n", Duration::from_secs(30));
    // Dropped, it is killed.
    drop(vm);
    let found = Findings::of(&host, "");
    let (good, state, remedy) = found.get("left-overs");
    assert!(!good && state.contains("ip link del dev br0"), "{state}");
    assert_eq!(remedy, "wirevm doctor --clean");
    for cleaned in [vec!["ip link del dev br0"], vec![]] {
        let text = said(doctor(&host, "", "--clean --json"));
        let object: Value = serde_json::from_str(&text).unwrap_or_else(|why| panic!("{why}: {text}"));
        assert_eq!(object["cleaned"], Value::from(cleaned), "{text}");
        assert!(object["findings"].as_array().is_some_and(|findings| !findings.is_empty()));
    }
}

#[test]
fn a_record_that_cannot_be_read_is_not_good() {
    let host = need!(Netns::with_own_run());
    host.sh("mkdir -m 700 /run/wirevm; echo nonsense >/run/wirevm/journal-1-1; echo x >/run/wirevm/journal-2-2; chmod 600 /run/wirevm/*; chown 65534 /run/wirevm/journal-2-2");
    let found = Findings::of(&host, "");
    let states: Vec<_> = found.0.iter().filter(|finding| finding["what"] == "left-overs").collect();
    assert_eq!(states.len(), 2, "{states:?}");
    for (name, why) in [("journal-1-1", "expected"), ("journal-2-2", "user 65534")] {
        let is_it = |finding: &&&Value| {
            finding["state"].as_str().is_some_and(|state| state.contains(name) && state.contains(why))
        };
        assert_eq!(
            states.iter().find(is_it).map(|finding| &finding["good"]),
            Some(&Value::from(false)),
            "{states:?}"
        );
    }
}

#[test]
fn what_makes_starts_slower_is_told_with_what_it_costs() {
    let host = need!(Netns::with_own_run());
    let script =
        "mount -t tmpfs tmpfs /sys/module/kvm/parameters && echo Y >/sys/module/kvm/parameters/nx_huge_pages
        mount -t tmpfs tmpfs /sys/devices/system/cpu/vulnerabilities
        echo Not affected >/sys/devices/system/cpu/vulnerabilities/itlb_multihit";
    if !std::fs::exists("/sys/module/kvm/parameters").unwrap_or_default() {
        skip!("there is no module kvm");
    }
    let found = Findings::of(&host, script);
    let (good, state, remedy) = found.get("kvm.nx_huge_pages");
    assert!(good && state.starts_with("is on:") && remedy.contains("=never"), "{state} {remedy}");
}

#[test]
fn what_guests_take_and_lack_is_told_with_what_brings_it_and_is_not_bad() {
    let host = need!(Netns::with_own_run());
    let script = "mount -t tmpfs tmpfs /boot; mkdir -p /boot/none; mount -t tmpfs -o ro tmpfs /mnt
        [ ! -d /lib/modules ] || mount -t tmpfs tmpfs /lib/modules
        mount -t tmpfs tmpfs /proc/sys/kernel; echo 2 >/proc/sys/kernel/io_uring_disabled
        export PATH=/boot/none WIREVM_AGENT=/boot/none/agent WIREVM_VIRTIOFSD=/boot/none/virtiofsd XDG_CACHE_HOME=/mnt";
    let found = Findings::of(&host, script);
    for (what, lacks, brings) in [
        ("agent", "wirevm-agent, is not there", "make build"),
        ("kernel", "there is none in /boot", "linux-image-amd64"),
        ("image cache", "cannot write to the cache /mnt/wirevm", "XDG_CACHE_HOME"),
        ("virtiofsd", "/boot/none/virtiofsd", "qemu-system-common"),
        ("io_uring", "io_uring_disabled=2", "sysctl -w kernel.io_uring_disabled=0"),
        ("ssh", "no wirevm ssh", "openssh-client"),
        ("qemu-img", "is not there", "qemu-utils"),
    ] {
        let (good, state, remedy) = found.get(what);
        assert!(good && state.contains(lacks) && remedy.contains(brings), "{what}: {state}; {remedy}");
    }
    let output = doctor(&host, script, "--json");
    assert_eq!(output.status.code(), Some(i32::from(!found.get("KVM").0)), "{output:?}");
}

#[test]
fn what_guests_take_and_have_is_named_and_nothing_is_made() {
    let host = need!(Netns::with_own_run());
    let dir = TempDir::new();
    for program in ["agent", "ssh", "qemu-img"] {
        put_program(&dir.path(program));
    }
    let kernel = handmade::kernel(&dir, forever());
    let script = format!(
        "mount -t tmpfs tmpfs /boot; cp {} /boot/vmlinuz-1
        [ ! -d /lib/modules ] || mount -t tmpfs tmpfs /lib/modules
        export PATH={dir}:$PATH WIREVM_AGENT={dir}/agent XDG_CACHE_HOME={dir}/cache",
        kernel.display(),
        dir = dir.path("").display(),
    );
    let found = Findings::of(&host, &script);
    for (what, state_has) in [
        ("agent", "/agent goes into guests"),
        ("image cache", "/cache/wirevm can be written to"),
        ("ssh", "/ssh is for wirevm ssh"),
        ("qemu-img", "/qemu-img converts"),
    ] {
        let (good, state, remedy) = found.get(what);
        assert!(good && state.contains(state_has) && remedy.is_empty(), "{what}: {state}; {remedy}");
    }
    let (good, state, remedy) = found.get("kernel");
    assert!(
        good && state.starts_with("/boot/vmlinuz-1 ") && remedy.contains("--modules"),
        "{state}; {remedy}"
    );
    assert!(!dir.path("cache").exists(), "it only looks");
}

fn put_program(path: &Path) {
    std::fs::write(path, "").expect("our own directory");
    std::fs::set_permissions(path, Permissions::from_mode(0o755)).expect("our own file");
}

#[test]
fn users_without_namespaces_are_told_so() {
    let host = need!(Netns::with_own_run());
    assert!(
        !Findings::of(&host, "").0.iter().any(|finding| finding["what"] == "user namespaces"),
        "root needs none"
    );
    for (most, is, remedy_has) in
        [(9, "are allowed", ""), (0, "cannot give virtiofsd a user namespace", "user.max_user_namespaces")]
    {
        // No root of its namespace, whose limit it sets.
        let script = format!("echo {most} >/proc/sys/user/max_user_namespaces; exec \"$0\" doctor --json");
        let mut command = host.command("unshare");
        command
            .args(["--user", "--map-user=1000", "--map-group=1000", "--keep-caps", "sh", "-ec", &script])
            .arg(wirevm_path());
        let findings = Findings::parse(&said(command.output().expect("unshare starts")));
        let (good, state, remedy) = findings.get("user namespaces");
        assert!(good && state.starts_with(is) && remedy.contains(remedy_has), "{state}; {remedy}");
    }
}

#[test]
fn strict_reverse_paths_are_told_by_link() {
    let host = need!(Netns::with_own_run());
    host.sh("ip link add eth0 type veth peer name eth1");
    let set = |all: u8, default: u8, eth0: u8| {
        let conf = "/proc/sys/net/ipv4/conf";
        host.sh(&format!(
            "echo {all} >{conf}/all/rp_filter; echo {default} >{conf}/default/rp_filter; \
                          echo {eth0} >{conf}/eth0/rp_filter; echo 0 >{conf}/eth1/rp_filter"
        ));
        Findings::of(&host, "").get("rp_filter").1.to_owned()
    };
    assert!(set(0, 0, 1).starts_with("is strict on eth0: "));
    assert!(set(1, 0, 0).starts_with("is strict on eth0, eth1, links to come: "));
    assert!(set(2, 1, 1).starts_with("does not keep"));
}

#[test]
fn wi_fi_is_told_of() {
    let host = need!(Netns::with_own_run());
    let script =
        "mount -t tmpfs tmpfs /sys/class/net; mkdir -p /sys/class/net/wlan0/phy80211 /sys/class/net/eth0";
    let found = Findings::of(&host, script);
    let (good, state, _) = found.get("wlan0");
    assert!(good && state.contains("no bridge and no macvtap on it"), "{state}");
    assert!(!found.0.iter().any(|finding| finding["what"] == "eth0"), "{:?}", found.0);
}

#[test]
fn a_read_only_proc_sys_is_where_nat_cannot_switch_anything_on() {
    let host = need!(Netns::with_own_run());
    let read_only = "mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys";
    host.sh("echo 0 >/proc/sys/net/ipv4/conf/all/forwarding");
    let found = Findings::of(&host, "");
    let (good, state, _) = found.get("IPv4 forwarding");
    assert!(good && state.contains("nat switches it on"), "{state}");
    let found = Findings::of(&host, read_only);
    let (good, state, remedy) = found.get("IPv4 forwarding");
    assert!(!good && state.contains("read-only: nat cannot switch it on"), "{state}");
    assert!(remedy.contains("--sysctl net.ipv4.conf.all.forwarding=1"), "{remedy}");
    host.sh("echo 1 >/proc/sys/net/ipv4/conf/all/forwarding");
    let found = Findings::of(&host, read_only);
    let (good, state, _) = found.get("IPv4 forwarding");
    assert!(good && state.contains("forward= will not lead from 127.0.0.1"), "{state}");
}

#[test]
fn without_proc_it_says_so() {
    let host = need!(Netns::with_own_run());
    let found = Findings::of(&host, "mount -t tmpfs tmpfs /proc");
    let (good, state, remedy) = found.get("IPv4 forwarding");
    assert_eq!((good, remedy), (false, "mount -t proc proc /proc"), "{state}");
    assert!(state.contains("there is no /proc/sys/net"), "{state}");
    assert!(found.get("rp_filter").1.contains("there is no /proc/sys/net"));
    assert_eq!(found.get("CAP_NET_ADMIN").1, "may make and change links");
}

#[test]
fn others_left_overs_are_not_none() {
    let host = need!(Netns::with_own_run());
    let dir = TempDir::new();
    host.sh("mkdir /run/nobody; chown 65534 /run/nobody");
    let mut command = as_nobody(host.command("setpriv"), &dir);
    let output = command.arg("doctor").env("XDG_RUNTIME_DIR", "/run/nobody").output();
    let text = said(output.expect("setpriv starts"));
    assert!(text.contains("none of this user's; those of root and others cannot be seen"), "{text}");
    assert!(text.contains("BAD   CAP_NET_ADMIN    may not make"), "{text}");
}
