//! OCI layouts and what engines save, made of busybox's tree in code.

use serde_json::{Value, json};

use super::*;
use crate::image::sha256::Digest;

/// Parts of an image, by their paths.
#[derive(Clone, Default)]
pub(super) struct Parts(pub(super) BTreeMap<String, Vec<u8>>);

impl Parts {
    pub(super) fn blob(&mut self, kind: &str, bytes: Vec<u8>) -> Value {
        let digest = Digest::of(&bytes);
        let descriptor =
            json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len() });
        self.0.insert(format!("blobs/sha256/{digest}"), bytes);
        descriptor
    }

    pub(super) fn tar(&self) -> Vec<u8> {
        self.0.iter().fold(Tar::default(), |tar, (path, bytes)| tar.file(path, bytes)).end()
    }

    fn directory(&self) -> Directory {
        let root = Directory::new();
        self.0.iter().for_each(|(path, bytes)| drop(root.file(path, bytes)));
        root
    }

    pub(super) fn load(&self) -> Image {
        load(&self.tar()).unwrap()
    }

    pub(super) fn said(&self) -> String {
        let as_tar = said(&self.tar());
        let root = self.directory();
        assert_eq!(as_tar, told(open(root.path()).expect_err("taken"), root.path()), "as a directory");
        as_tar
    }
}

fn packed(program: &str, bytes: &[u8]) -> Vec<u8> {
    let root = Directory::new();
    root.file("in", bytes);
    run(&root, &format!("{program} <in >out"));
    std::fs::read(root.path().join("out")).unwrap()
}

fn layers() -> [Vec<u8>; 2] {
    let lower = Tar::default()
        .directory("bin")
        .file("bin/busybox", b"program")
        .symlink("bin/sh", "busybox")
        .file("etc/old", b"")
        .symlink("etc/up", "../../../../etc/shadow");
    [
        lower.end(),
        Tar::default().file("etc/.wh.old", b"").link("bin/ls", "bin/busybox").file("etc/new", b"2").end(),
    ]
}

pub(super) fn config_of(architecture: &str) -> Vec<u8> {
    let ids: Vec<_> = layers().iter().map(|layer| format!("sha256:{}", Digest::of(layer))).collect();
    json!({
        "architecture": architecture, "os": "linux", "rootfs": { "type": "layers", "diff_ids": ids },
        "config": {
            "Env": ["PATH=/bin", "A=b c"], "Cmd": ["-c", "echo"], "Entrypoint": ["/bin/sh"], "WorkingDir": "/etc",
            "User": "1:2", "Labels": null,
        },
    })
    .to_string()
    .into_bytes()
}

pub(super) fn manifest(parts: &mut Parts, architecture: &str, pack: &str) -> Value {
    let config = parts.blob("application/vnd.oci.image.config.v1+json", config_of(architecture));
    let layers: Vec<_> = layers()
        .iter()
        .map(|layer| parts.blob("application/vnd.oci.image.layer.v1.tar", packed(pack, layer)))
        .collect();
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
    parts.blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().into_bytes())
}

pub(super) fn index(parts: &mut Parts, manifests: &[Value]) {
    parts.0.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
    parts.0.insert(
        "index.json".into(),
        json!({ "schemaVersion": 2, "manifests": manifests }).to_string().into_bytes(),
    );
}

pub(super) fn oci(pack: &str) -> Parts {
    let mut parts = Parts::default();
    let manifest = manifest(&mut parts, "amd64", pack);
    index(&mut parts, &[manifest]);
    parts
}

/// What docker wrote before 25, and podman does by default: files called by digests.
fn saved() -> Parts {
    let mut parts = Parts::default();
    let config = config_of("amd64");
    let name = format!("{}.json", Digest::of(&config));
    let [lower, upper] = layers();
    parts.0.insert("abc/layer.tar".into(), lower);
    parts.0.insert("def.tar".into(), upper);
    let image =
        json!([{ "Config": name, "RepoTags": ["busybox:1"], "Layers": ["abc/layer.tar", "def.tar"] }]);
    parts.0.insert(name, config);
    parts.0.insert("manifest.json".into(), image.to_string().into_bytes());
    parts
}

/// What podman writes by `--format docker-dir`, and skopeo by `dir:`.
fn flat(architecture: &str, pack: &str) -> Parts {
    let mut parts = Parts::default();
    let manifest = manifest(&mut parts, architecture, pack);
    let manifest = manifest["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
    let beside = |(path, bytes): (String, Vec<u8>)| (path.rsplit('/').next().unwrap().to_owned(), bytes);
    let mut flat = Parts(parts.0.into_iter().map(beside).collect());
    let manifest = flat.0.remove(&manifest).unwrap();
    flat.0.insert("manifest.json".into(), manifest);
    flat.0.insert("version".into(), b"Directory Transport Version: 1.1\n".to_vec());
    flat
}

fn check(image: &Image) {
    let all = listing(&image.tree);
    let names: Vec<_> = all.keys().skip(1).collect();
    assert_eq!(names, ["/bin", "/bin/busybox", "/bin/ls", "/bin/sh", "/etc", "/etc/new", "/etc/up"]);
    assert_eq!((content(&all, "/bin/ls"), all["/bin/busybox"].links), (&b"program"[..], 2));
    let config = &image.config;
    assert_eq!((config.env.len(), &config.working_dir[..], &config.user[..]), (2, "/etc", "1:2"));
    assert_eq!(config.command(&[]), ["/bin/sh", "-c", "echo"]);
    assert_eq!(config.command(&["x".into()]), ["/bin/sh", "x"]);
}

#[test]
fn an_image_whose_parts_lie_side_by_side_is_one() {
    for pack in ["cat", "gzip -c"] {
        check(&open(flat("amd64", pack).directory().path()).unwrap());
    }
    assert!(flat("arm64", "cat").said().starts_with("the image IMAGE is for linux/arm64"));
    let mut wrong = flat("amd64", "cat");
    let layer = Digest::of(&layers()[0]).to_string();
    wrong.0.insert(layer.clone(), layers()[1].clone());
    assert!(wrong.said().contains(&layer), "{}", wrong.said());
    let mut several = flat("amd64", "cat");
    several.0.insert("manifest.json".into(), json!({ "manifests": [] }).to_string().into_bytes());
    assert!(several.said().contains("lists images for several platforms"), "{}", several.said());
    // Files of these names are a root's, where nothing says more.
    let mut root = flat("amd64", "cat");
    root.0.insert("version".into(), b"12.5\n".to_vec());
    assert!(open(root.directory().path()).unwrap().tree.find(b"manifest.json").is_some());
}

#[test]
fn a_layout_is_taken_in_every_form() {
    for pack in ["cat", "gzip -c", "zstd -qc"] {
        let parts = oci(pack);
        check(&parts.load());
        check(&open(parts.directory().path()).unwrap());
        check(&load(&packed("gzip -c", &parts.tar())).unwrap());
    }
    // As `tar -C DIRECTORY -c .` packs it.
    let root = oci("cat").directory();
    run(&root, "tar -cf archive --exclude=archive .");
    check(&open(&root.path().join("archive")).unwrap());
}

#[test]
fn what_engines_save_is_taken_in_both_forms() {
    check(&saved().load());
    check(&open(saved().directory().path()).unwrap());
    // A layer that another image has, too, is a link to there; and what newer ones write is a layout, besides.
    let mut tar = saved().0.iter().fold(Tar::default(), |tar, (path, bytes)| match &path[..] {
        "abc/layer.tar" => tar.file("other/layer.tar", bytes).symlink(path, "../other/layer.tar"),
        _ => tar.file(path, bytes),
    });
    check(&load(&tar.clone().end()).unwrap());
    for (path, bytes) in oci("gzip -c").0 {
        tar = tar.file(&path, &bytes);
    }
    check(&load(&tar.end()).unwrap());
    // A root that has such files is a root.
    let root = Tar::default().file("manifest.json", b"[{\"a\":1}]").file("index.json", b"{}").end();
    assert_eq!(names(&load(&root).unwrap()), ["/index.json", "/manifest.json"]);
}

#[test]
fn of_several_machines_images_this_ones_is_taken() {
    let mut parts = Parts::default();
    let with = |manifest: &Value, platform: Value| {
        let mut manifest = manifest.clone();
        manifest["platform"] = platform;
        manifest
    };
    let ours = manifest(&mut parts, "amd64", "cat");
    let arm =
        json!({ "mediaType": ours["mediaType"], "digest": format!("sha256:{}", "0".repeat(64)), "size": 1 });
    let arm = with(&arm, json!({ "os": "linux", "architecture": "arm64", "variant": "v8" }));
    let amd = with(&ours, json!({ "os": "linux", "architecture": "amd64" }));
    let mut attestation = with(&arm, json!({ "os": "unknown", "architecture": "unknown" }));
    attestation["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
    let nested = json!({ "manifests": [arm, amd, attestation] }).to_string().into_bytes();
    let nested = parts.blob("application/vnd.oci.image.index.v1+json", nested);
    index(&mut parts, &[nested.clone(), ours.clone()]);
    check(&parts.load());

    index(&mut parts, &[arm.clone(), attestation]);
    assert_eq!(
        parts.said(),
        "the image IMAGE is for linux/arm64/v8, not for linux/amd64 | fetch the one for this machine: \
         `podman pull --platform linux/amd64 NAME`, and save that"
    );
    let mut parts = Parts::default();
    let other = manifest(&mut parts, "riscv64", "cat");
    index(&mut parts, &[other]);
    assert!(parts.said().contains("is for linux/riscv64, not"), "{}", parts.said());

    let mut parts = oci("cat");
    let (mut first, mut second) =
        (manifest(&mut parts, "amd64", "cat"), manifest(&mut parts, "amd64", "gzip -nc"));
    first["annotations"] = json!({ "org.opencontainers.image.ref.name": "one\u{1b}[2J" });
    second["annotations"] = json!({ "io.containerd.image.name": "docker.io/two:2" });
    index(&mut parts, &[first, second]);
    let said = parts.said();
    assert!(
        said.starts_with("IMAGE has several images: one\\u{1b}[2J, docker.io/two:2 | save one image"),
        "{said}"
    );
    let mut two = saved();
    let image: Value = serde_json::from_slice(&two.0["manifest.json"]).unwrap();
    two.0.insert("manifest.json".into(), json!([image[0], image[0]]).to_string().into_bytes());
    assert!(two.said().starts_with("IMAGE has several images: busybox:1, busybox:1 | "), "{}", two.said());
}

#[test]
fn each_fault_of_an_image_has_its_words() {
    let blobs = |parts: &Parts| -> Vec<String> {
        parts.0.keys().filter(|path| path.starts_with("blobs")).cloned().collect()
    };
    for path in blobs(&oci("cat")) {
        let mut parts = oci("cat");
        parts.0.remove(&path);
        let said = parts.said();
        assert!(
            said.contains(&path) && said.contains(" of the image IMAGE is missing | fetch or save"),
            "{said}"
        );
        let mut parts = oci("cat");
        parts.0.get_mut(&path).unwrap()[1] ^= 1;
        let said = parts.said();
        assert!(said.contains(&path) && said.contains(" of the image IMAGE has the digest "), "{said}");
    }
    let name = |parts: &Parts| {
        parts.0.keys().find(|path| path.ends_with(".json") && path.len() > 60).unwrap().clone()
    };
    for path in [name(&saved()), "abc/layer.tar".into(), "def.tar".into()] {
        let mut parts = saved();
        parts.0.remove(&path);
        assert!(parts.said().contains(&path) && parts.said().contains("is missing"), "{}", parts.said());
        let mut parts = saved();
        parts.0.get_mut(&path).unwrap()[1] ^= 1;
        assert!(parts.said().contains("has the digest "), "{}", parts.said());
    }
    for (index, words) in [
        ("{", "index.json of the image IMAGE is not what it should be: EOF while parsing"),
        ("{}", "it has no list of manifests"),
        (r#"{"manifests":[]}"#, "it lists no image"),
        (r#"{"manifests":[{"digest":"md5:1"}]}"#, "\"md5:1\" is no digest of sha256"),
        (r#"{"manifests":[{"digest":"sha256:../../x"}]}"#, "is no digest of sha256"),
        (r#"{"manifests":[7]}"#, "is no digest of sha256"),
    ] {
        let mut parts = oci("cat");
        parts.0.insert("index.json".into(), index.as_bytes().to_vec());
        assert!(parts.said().contains(words), "{}", parts.said());
    }
    // Indexes within indexes.
    let mut parts = oci("cat");
    let mut inner = manifest(&mut parts, "amd64", "cat");
    for _ in 0..6 {
        inner = parts.blob(
            "application/vnd.oci.image.index.v1+json",
            json!({ "manifests": [inner] }).to_string().into(),
        );
    }
    index(&mut parts, &[inner]);
    assert!(parts.said().contains("indexes lie in indexes too deep"), "{}", parts.said());
    // Indexes each of which lists all that lie below, and one that lists too much.
    let mut parts = Parts::default();
    let mut below = vec![manifest(&mut parts, "amd64", "cat")];
    let nested = |parts: &mut Parts, manifests: &[Value]| {
        parts.blob(
            "application/vnd.oci.image.index.v1+json",
            json!({ "manifests": manifests }).to_string().into(),
        )
    };
    for _ in 0..4 {
        let next = nested(&mut parts, &below);
        below = vec![next; 100];
    }
    index(&mut parts, &below);
    check(&parts.load());
    let other = |n: usize| {
        let digest = format!("sha256:{n:064x}");
        json!({ "digest": digest, "platform": { "architecture": "arm64" } })
    };
    index(&mut parts, &(0..1000).map(other).collect::<Vec<_>>());
    assert!(parts.said().contains("is for linux/arm64, "), "{}", parts.said());
    index(&mut parts, &(0..1001).map(other).collect::<Vec<_>>());
    assert!(parts.said().contains("its indexes list more than 1000 images"), "{}", parts.said());
    // Broken within a layer.
    let mut parts = Parts::default();
    let config = parts.blob("config", config_of("amd64"));
    let layer = parts.blob("tar", Tar::default().file("../x", b"").end());
    let bad = parts.blob("", json!({ "config": config, "layers": [layer] }).to_string().into());
    index(&mut parts, &[bad]);
    let said = parts.said();
    assert!(
        said.starts_with("layer 1 (blobs/sha256/") && said.contains("../x climbs out of the root"),
        "{said}"
    );
    let foreign = parts.blob("application/vnd.example.wasm", b"wasm".to_vec());
    let bad = parts.blob("", json!({ "config": config, "layers": [foreign] }).to_string().into());
    index(&mut parts, &[bad]);
    assert!(parts.said().contains("no tar archive"), "{}", parts.said());
}

#[test]
fn links_of_a_layout_do_not_lead_out_of_it() {
    let root = saved().directory();
    run(&root, "mv def.tar ../boot-test-outside.$$; ln -s ../boot-test-outside.$$ def.tar");
    let said = told(open(root.path()).unwrap_err(), root.path());
    run(&root, "rm $(readlink def.tar)");
    assert!(said.starts_with("cannot read layer 2 (def.tar) of the image IMAGE: "), "{said}");
}
