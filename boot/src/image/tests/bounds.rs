//! Limits to the byte: what just fits is taken, and one more is not.

use std::sync::Arc;

use serde_json::{Value, json};

use super::engines::{Parts, config_of, index, manifest, oci};
use super::*;
use crate::image::fault::Fault;
use crate::image::limits::Budget;
use crate::image::oci::Store;
use crate::image::sha256::Digest;
use crate::image::span::Span;
use crate::image::tree::{Bytes, HostFile, Inode, Sparse};
use crate::image::xattr;

fn span(len: u64) -> Span {
    Span::whole(std::fs::File::open("/dev/null").unwrap(), len)
}

fn inode(kind: Kind, xattrs: &[(&str, &str)]) -> Inode {
    let bytes = |text: &str| -> Bytes { text.as_bytes().into() };
    let xattrs = xattrs.iter().map(|(name, value)| (bytes(name), bytes(value))).collect();
    Inode { kind, meta: Meta { xattrs, ..Meta::default() } }
}

#[test]
fn each_file_is_counted_to_the_byte() {
    type Take = Box<dyn Fn(&mut Budget) -> Result<(), Fault>>;
    let entry = |inode: Inode| -> Take { Box::new(move |budget| budget.entry(&inode)) };
    let sparse = Sparse { data: span(30), size: 1000, pieces: vec![(0, 10), (100, 10), (200, 10)] };
    let root = Arc::new(std::fs::File::open("/").unwrap().into());
    let host = HostFile { root, path: "f".into(), inode: 1, size: 77 };
    let file = |content| inode(Kind::File(content), &[]);
    // Of each: files, bytes of data, bytes with holes, bytes of metadata.
    for (what, take, cost) in [
        ("fifo", entry(inode(Kind::Fifo, &[])), (1, 0, 0, 0)),
        ("link", entry(inode(Kind::Symlink(b"target"[..].into()), &[])), (1, 0, 0, 6)),
        ("file", entry(file(Content::Whole(span(55)))), (1, 55, 55, 0)),
        ("sparse", entry(file(Content::Sparse(Box::new(sparse)))), (1, 30, 1000, 48)),
        ("host", entry(file(Content::Host(Box::new(host)))), (1, 77, 77, 0)),
        ("attributes", entry(inode(Kind::Fifo, &[("user.a", "bcd"), ("user.bc", "")])), (1, 0, 0, 80)),
        ("long", entry(inode(Kind::Fifo, &[(&"n".repeat(99), "v")])), (1, 0, 0, 132)),
        ("hard link", Box::new(|budget| budget.hard_link()), (1, 0, 0, 0)),
        ("name", Box::new(|budget| budget.name(5)), (0, 0, 0, 69)),
        ("whiteout", Box::new(|budget| budget.whiteout(3)), (0, 0, 0, 64)),
        ("whiteout of nothing", Box::new(|budget| budget.whiteout(0)), (0, 0, 0, 16)),
    ] {
        let (entries, data, apparent, metadata) = cost;
        let exact = Limits { entries, data, apparent, metadata };
        take(&mut Budget::new(exact)).unwrap_or_else(|fault| panic!("{what}: {fault}"));
        for (less, there) in [
            (Limits { entries: entries.saturating_sub(1), ..exact }, entries > 0),
            (Limits { data: data.saturating_sub(1), ..exact }, data > 0),
            (Limits { apparent: apparent.saturating_sub(1), ..exact }, apparent > 0),
            (Limits { metadata: metadata.saturating_sub(1), ..exact }, metadata > 0),
        ] {
            assert_eq!(take(&mut Budget::new(less)).is_err(), there, "{what} within {less:?}");
        }
    }
}

#[test]
fn attributes_fit_below_64_kib_by_names_linux_can_hold() {
    let fit = |attributes: &[(&[u8], usize)]| {
        let attributes: Vec<(Bytes, Bytes)> =
            attributes.iter().map(|(name, len)| ((*name).into(), vec![0; *len].into())).collect();
        xattr::fit(&attributes)
    };
    assert!(fit(&[]) && fit(&[(b"user.x", (1 << 16) - 8 - 6 - 1)]));
    assert!(!fit(&[(b"user.x", (1 << 16) - 8 - 6)]));
    assert!(fit(&[(b"user.x", 32_000), (b"user.y", (1 << 16) - 32_000 - 28 - 1)]));
    assert!(!fit(&[(b"user.x", 32_000), (b"user.y", (1 << 16) - 32_000 - 28)]));
    assert!(fit(&[(&[b'n'; 255], 0)]) && !fit(&[(&[b'n'; 256], 0)]));
    assert!(!fit(&[(b"user.a\0b", 0)]) && !fit(&[(b"user.a", 0), (b"user.b\0", 0)]));
}

#[test]
fn attributes_of_the_root_are_counted() {
    let limits = Limits { metadata: 3000, ..Limits::default() };
    let archive = |n: usize| {
        let tar = (0..n)
            .fold(Tar::default(), |tar, _| tar.pax(&[("SCHILY.xattr.user.x", &[1; 100])]).directory("./"));
        Scratch::new(&tar.file("f", b"").end())
    };
    // Of each: 126 bytes of the header before it, and 106 for the attribute.
    open_within(archive(12).path(), limits).unwrap();
    let error = open_within(archive(13).path(), limits).unwrap_err().to_string();
    assert!(error.contains("is not to be used"), "{error}");
}

#[test]
fn links_lead_to_less_than_4096_bytes_without_nul() {
    let link = |target: &[u8]| Tar::default().pax(&[("linkpath", target)]).symlink("l", "").end();
    let listing = listing(&load(&link(&[b'x'; 4095])).unwrap().tree);
    assert_eq!(listing["/l"].what, What::Symlink(vec![b'x'; 4095]));
    for target in [&[b'x'; 4096][..], b"a\0b", b"\0"] {
        let said = said(&link(target));
        assert!(said.contains("l is a symbolic link to nothing, or to more than Linux can follow"), "{said}");
    }
}

#[test]
fn extended_headers_have_a_mebibyte_at_most() {
    let archive = |len: usize| {
        let mut records = b"9 path=a\n".to_vec();
        records.resize(len, 0);
        Tar::default().sized("pax", b'x', &records).file("x", b"").end()
    };
    assert_eq!(names(&load(&archive(1 << 20)).unwrap()), ["/a"]);
    let said = said(&archive((1 << 20) + 1));
    assert!(said.contains("have 1048577 bytes, and more than 1048576 are never needed"), "{said}");
}

#[test]
fn documents_have_8_mib_at_most() {
    for name in ["index.json", "oci-layout"] {
        let mut parts = oci("cat");
        parts.0.get_mut(name).unwrap().resize(8 << 20, b' ');
        parts.load();
        parts.0.get_mut(name).unwrap().push(b' ');
        let said = parts.said();
        assert!(said.contains("it has 8388609 bytes, and 8388608 at most are read"), "{said}");
    }
}

#[test]
fn images_have_1000_layers_at_most() {
    let mut parts = Parts::default();
    let config = parts.blob("config", config_of("amd64"));
    let layer = parts.blob("tar", Tar::default().file("f", b"text").end());
    let mut of = |layers: usize| {
        let manifest = json!({ "config": config, "layers": vec![layer.clone(); layers] }).to_string();
        let manifest = parts.blob("", manifest.into());
        index(&mut parts, &[manifest]);
        parts.tar()
    };
    assert_eq!(names(&load(&of(1000)).unwrap()), ["/f"]);
    let said = said(&of(1001));
    assert!(
        said.contains(
            "the manifest of the image IMAGE is not what it should be: it has more than 1000 layers"
        ),
        "{said}"
    );
}

#[test]
fn of_other_machines_images_twenty_are_named() {
    let other = |n: usize| {
        let platform = json!({ "architecture": format!("other{n:02}") });
        json!({ "digest": format!("sha256:{n:064x}"), "platform": platform })
    };
    for (count, named) in [(19, 19), (20, 20), (21, 20), (30, 20)] {
        let mut parts = Parts::default();
        index(&mut parts, &(0..count).map(other).collect::<Vec<_>>());
        assert_eq!(parts.said().matches("linux/other").count(), named, "{count}");
    }
}

#[test]
fn what_is_signed_or_attested_is_no_image() {
    let mut parts = Parts::default();
    let ours = manifest(&mut parts, "amd64", "cat");
    let mut attestation = manifest(&mut parts, "amd64", "gzip -nc");
    let mut signature = manifest(&mut parts, "amd64", "zstd -qc");
    attestation["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
    signature["artifactType"] = json!("application/vnd.dev.cosign.artifact.sig.v1+json");
    index(&mut parts, &[attestation.clone(), ours, signature.clone()]);
    parts.load();
    index(&mut parts, &[attestation, signature]);
    assert!(parts.said().contains("it lists no image"), "{}", parts.said());
}

/// An image whose one layer is `size` bytes, of which an archive has only the first.
fn with_holes(layer: &[u8], size: u64) -> Vec<u8> {
    let mut whole = layer.to_vec();
    whole.resize(size as usize, 0);
    let config = json!({ "rootfs": { "diff_ids": [format!("sha256:{}", Digest::of(&whole))] } });
    archive_with_holes(layer, size, &config)
}

fn archive_with_holes(layer: &[u8], size: u64, config: &Value) -> Vec<u8> {
    let map = format!("0,{}", layer.len());
    let size = size.to_string();
    Tar::default()
        .file("manifest.json", br#"[{"Config":"c.json","Layers":["l.tar"]}]"#)
        .file("c.json", config.to_string().as_bytes())
        .pax(&[("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", map.as_bytes())])
        .file("l.tar", layer)
        .end()
}

#[test]
fn a_layer_with_holes_is_read_up_to_64_mib() {
    let layer = Tar::default().file("f", b"text").0;
    assert_eq!(names(&load(&with_holes(&layer, 1 << 20)).unwrap()), ["/f"]);
    let wrong = json!({ "rootfs": { "diff_ids": [format!("sha256:{}", Digest([0; 32]))] } });
    let said = |size: u64| said(&archive_with_holes(&layer, size, &wrong));
    assert!(said(64 << 20).starts_with("layer 1 (l.tar) of the image IMAGE has the digest "));
    let more = said((64 << 20) + 1);
    assert!(more.starts_with("unpacked, the image IMAGE has more than 67108864 bytes | "), "{more}");
}

#[test]
fn layers_in_an_archive_that_others_can_write_to_are_taken() {
    use std::os::unix::fs::PermissionsExt;
    let file = Scratch::new(&oci("gzip -c").tar());
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o666)).unwrap();
    let image = open(file.path()).unwrap();
    image.watch.check().unwrap();
}

#[test]
fn a_layer_that_a_digest_vouches_for_needs_no_end_mark() {
    let image = |layer: Vec<u8>| {
        let mut parts = Parts::default();
        let config = parts.blob("config", config_of("amd64"));
        let layer = parts.blob("tar", layer);
        let manifest = json!({ "config": config, "layers": [layer] }).to_string();
        let manifest = parts.blob("", manifest.into());
        index(&mut parts, &[manifest]);
        parts
    };
    assert_eq!(names(&image(Tar::default().file("f", b"text").0).load()), ["/f"]);
    for cut in [
        [Tar::default().file("f", b"text").0, vec![0; 100]].concat(),
        Tar::default().file("f", b"text").pax(&[("path", b"g")]).0,
    ] {
        assert!(image(cut.clone()).said().contains("cut off"), "{}", image(cut).said());
    }
}

#[test]
fn a_pipe_in_a_store_is_not_waited_for() {
    let root = Directory::new();
    root.file("file", b"text");
    run(&root, "mkfifo fifo; mkdir directory; ln -s file link; ln -s /etc/passwd away");
    let store = Store::Directory(std::fs::File::open(root.path()).unwrap().into());
    for name in ["fifo", "directory", "none", "file/below"] {
        assert!(store.open(name).unwrap().is_none(), "{name}");
    }
    for name in ["file", "link"] {
        let Some(Content::Whole(span)) = store.open(name).unwrap() else { panic!("no {name}") };
        assert_eq!(span.len, 4);
        let flags = rustix::io::fcntl_getfd(&span.file).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }
    store.open("away").unwrap_err();
    store.open("../x").unwrap_err();
    // Nor where it stands for the image's own documents.
    run(&root, "mv fifo oci-layout; mkfifo manifest.json");
    assert!(names(&open(root.path()).unwrap()).contains(&"/manifest.json".into()));
}
