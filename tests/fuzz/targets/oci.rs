//! An image that is an OCI layout, or what engines save, of any documents and layers, with the digests right: the outcome is an error, or a
//! root in both formats.
//!
//! The input is one blob of several parts: flags, `index.json`, `manifest.json`, and then other blobs, among them layers. In all but layers
//! `@N` and `#N` stand for digest and size of part N, which comes later.
#![no_main]

use std::io::Write;

use boot::image::Digest;
use flate2::Compression;
use flate2::write::GzEncoder;
use fuzz::tar::{Tar, seal_all};
use fuzz::{Seeds, join, parts, root};

fuzz::target!(seeds, run);

const PARTS_MAX: usize = 10;

fn run(data: &[u8]) {
    let parts = parts(data);
    let flags = parts[0].first().copied().unwrap_or(0);
    let mut blobs: Vec<(String, Vec<u8>)> = vec![Default::default(); parts.len().min(PARTS_MAX)];
    for (number, part) in parts.iter().enumerate().take(PARTS_MAX).skip(1).rev() {
        let blob = if is_archive(part) { layer(flags, part) } else { document(part, number, &blobs) };
        blobs[number] = (Digest::of(&blob).to_string(), blob);
    }
    let mut tar = Tar::default();
    let (layout, saved) = (flags & 1 != 0, flags & 2 != 0);
    if layout {
        tar = tar.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    }
    for (number, (digest, blob)) in blobs.iter().enumerate().skip(1) {
        tar = match number {
            1 if layout => tar.file("index.json", blob),
            2 if saved => tar.file("manifest.json", blob),
            1 | 2 => tar,
            _ if layout => tar.file(&format!("blobs/sha256/{digest}"), blob),
            _ => tar,
        };
        if saved && number > 2 {
            tar = tar.file(&format!("{digest}.json"), blob).raw(
                &format!("{number}/layer.tar"),
                b'2',
                &format!("../{digest}.json"),
                b"",
            );
        }
    }
    root::make(&tar.end());
}

fn is_archive(part: &[u8]) -> bool {
    part.len() >= 512 && &part[257..262] == b"ustar"
}

fn layer(flags: u8, part: &[u8]) -> Vec<u8> {
    let mut layer = part.to_vec();
    seal_all(&mut layer);
    if flags & 4 == 0 {
        return layer;
    }
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(&layer).unwrap();
    packed.finish().unwrap()
}

/// With what stands for the parts behind it.
fn document(text: &[u8], number: usize, blobs: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut document = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let part =
            text.get(at + 1).and_then(|digit| char::from(*digit).to_digit(10)).map(|digit| digit as usize);
        match part.filter(|part| *part > number).and_then(|part| blobs.get(part)) {
            Some((digest, _)) if text[at] == b'@' => document.extend(format!("sha256:{digest}").bytes()),
            Some((_, blob)) if text[at] == b'#' => document.extend(blob.len().to_string().bytes()),
            Some((digest, _)) if text[at] == b'$' => document.extend(format!("{digest}.json").bytes()),
            _ => {
                document.push(text[at]);
                at += 1;
                continue;
            }
        }
        at += 2;
    }
    document
}

fn seeds() -> Seeds {
    let lower = Tar::default()
        .raw("bin", b'5', "", b"")
        .file("bin/busybox", b"program")
        .raw("bin/sh", b'2', "busybox", b"")
        .file("etc/old", b"")
        .raw("etc/up", b'2', "../../../../etc/shadow", b"")
        .end();
    let upper = Tar::default()
        .file("etc/.wh.old", b"")
        .file("bin/.wh..wh..opq", b"")
        .raw("etc/ls", b'1', "etc/up", b"")
        .file("etc/new", b"2")
        .end();
    let index = br#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"@3","size":#3,"platform":{"os":"linux","architecture":"amd64"},"annotations":{"org.opencontainers.image.ref.name":"one"}}]}"#;
    let nested =
        br#"{"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"@7","size":#7}]}"#;
    let inner = br#"{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"@8","size":#8},{"digest":"@9","size":1,"platform":{"os":"linux","architecture":"arm64","variant":"v8"}}]}"#;
    let saved = br#"[{"Config":"$4","RepoTags":["busybox:1"],"Layers":["$5","6/layer.tar"]}]"#;
    let manifest = br#"{"schemaVersion":2,"config":{"digest":"@4","size":#4},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"@5","size":#5},{"digest":"@6","size":#6}]}"#;
    let late = br#"{"config":{"digest":"@9","size":#9},"layers":[]}"#;
    let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["@5","@6"]},"config":{"Env":["PATH=/bin","A=b c"],"Cmd":["-c","echo"],"Entrypoint":["/bin/sh"],"WorkingDir":"/etc","User":"1:2","Labels":null}}"#;
    let bare = br#"{"architecture":"amd64","os":"linux"}"#;
    let all = |flags: u8, index: &[u8], config: &[u8]| {
        join(&[&[flags], index, saved, manifest, config, &lower, &upper, inner, late, bare])
    };
    vec![
        ("layout".into(), all(1, index, config)),
        ("layout-packed".into(), all(5, index, bare)),
        ("layout-nested".into(), all(1, nested, config)),
        ("saved".into(), all(2, index, config)),
        ("both".into(), all(7, index, bare)),
        ("neither".into(), all(0, index, config)),
    ]
}
