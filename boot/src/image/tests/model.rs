//! Layers, against a model of them that is only a list of paths.

use proptest::prelude::*;

use super::*;
use crate::image::fault::Fault;
use crate::image::layer::{Layer, apply};
use crate::image::limits::Budget;
use crate::image::span::Span;

/// What a layer does, in the order of the archive. Paths are of names that are never files and directories both.
#[derive(Clone, Debug)]
enum Step {
    Directory(usize),
    File(usize, usize, u8),
    HideFile(usize, usize),
    HideDirectory(usize),
    Opaque(usize),
}

const DIRECTORIES: [&str; 6] = ["a", "a/b", "a/b/c", "d", "d/e", "a/x"];

fn step() -> impl Strategy<Value = Step> {
    let directory = 0..DIRECTORIES.len();
    prop_oneof![
        2 => directory.clone().prop_map(Step::Directory),
        6 => (directory.clone(), 0..3_usize, any::<u8>()).prop_map(|(d, f, byte)| Step::File(d, f, byte)),
        2 => (directory.clone(), 0..3_usize).prop_map(|(d, f)| Step::HideFile(d, f)),
        1 => directory.clone().prop_map(Step::HideDirectory),
        1 => directory.prop_map(Step::Opaque),
    ]
}

fn file(directory: usize, name: usize) -> String {
    format!("{}/f{name}", DIRECTORIES[directory])
}

fn archive(steps: &[Step]) -> Vec<u8> {
    let mut tar = Tar::default();
    for step in steps {
        tar = match step {
            Step::Directory(d) => tar.directory(DIRECTORIES[*d]),
            Step::File(d, f, byte) => tar.file(&file(*d, *f), &[*byte]),
            Step::HideFile(d, f) => tar.file(&format!("{}/.wh.f{f}", DIRECTORIES[*d]), b""),
            Step::HideDirectory(d) => {
                let path = DIRECTORIES[*d];
                let name = path.rsplit('/').next().unwrap();
                tar.file(&format!("{}.wh.{name}", &path[..path.len() - name.len()]), b"")
            }
            Step::Opaque(d) => tar.file(&format!("{}/.wh..wh..opq", DIRECTORIES[*d]), b""),
        };
    }
    tar.end()
}

/// Paths, with the bytes of files: first what a layer hides of those before it goes, then what it has comes.
fn model(layers: &[Vec<Step>]) -> BTreeMap<String, Option<u8>> {
    let mut tree = BTreeMap::new();
    for layer in layers {
        for step in layer {
            match step {
                Step::HideFile(d, f) => drop(tree.remove(&file(*d, *f))),
                Step::HideDirectory(d) => {
                    let below = format!("{}/", DIRECTORIES[*d]);
                    tree.retain(|path: &String, _| path != DIRECTORIES[*d] && !path.starts_with(&below));
                }
                Step::Opaque(d) => {
                    let below = format!("{}/", DIRECTORIES[*d]);
                    tree.retain(|path: &String, _| !path.starts_with(&below));
                }
                _ => {}
            }
        }
        for step in layer {
            let (path, byte) = match step {
                Step::Directory(d) => (DIRECTORIES[*d].to_owned(), None),
                Step::File(d, f, byte) => (file(*d, *f), Some(*byte)),
                _ => continue,
            };
            for (at, _) in path.match_indices('/') {
                tree.entry(path[..at].to_owned()).or_insert(None);
            }
            tree.insert(path, byte);
        }
    }
    tree
}

fn layered(layers: &[Vec<u8>]) -> Tree {
    layered_within(layers, Limits::default()).unwrap()
}

fn layered_within(layers: &[Vec<u8>], limits: Limits) -> Result<Tree, Fault> {
    let mut tree = Tree::new();
    let mut budget = Budget::new(limits);
    for (number, archive) in (1..).zip(layers) {
        let file = Scratch::new(archive);
        let span = Span::whole(std::fs::File::open(file.path()).unwrap(), archive.len() as u64);
        apply(&mut tree, &span, Layer { number, whiteouts: true, vouched: true }, &mut budget)?;
    }
    Ok(tree)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn layers_are_what_the_model_says(layers in prop::collection::vec(prop::collection::vec(step(), 0..8), 1..4)) {
        let archives: Vec<_> = layers.iter().map(|steps| archive(steps)).collect();
        let tree = layered(&archives);
        let got: BTreeMap<String, Option<u8>> = listing(&tree)
            .into_iter()
            .filter(|(path, _)| !path.is_empty())
            .map(|(path, node)| {
                let byte = match node.what {
                    What::File(bytes) => Some(bytes[0]),
                    _ => None,
                };
                (path[1..].to_owned(), byte)
            })
            .collect();
        prop_assert_eq!(got, model(&layers));
        erofs::read_back(&tree);
    }
}

#[test]
fn links_lead_into_lower_layers() {
    let lower =
        Tar::default().file("a", b"old").link("b", "a").directory("usr/lib").symlink("lib", "usr/lib").end();
    let upper = Tar::default()
        .link("c", "a")
        .file(".wh.a", b"")
        .file("lib/new", b"1")
        .file("lib/.wh.gone", b"")
        .file("nowhere/.wh.x", b"")
        .file("b", b"new")
        .end();
    let all = listing(&layered(&[lower, upper]));
    assert_eq!(
        all.keys().skip(1).collect::<Vec<_>>(),
        ["/b", "/c", "/lib", "/usr", "/usr/lib", "/usr/lib/new"]
    );
    assert_eq!((content(&all, "/c"), content(&all, "/b")), (&b"old"[..], &b"new"[..]));
    assert_eq!((all["/b"].links, all["/c"].links), (1, 1));
}

#[test]
fn whiteouts_are_paid_for_by_what_they_look_at() {
    let files = || (0..100).fold(Tar::default(), |tar, n| tar.file(&format!("d/{n}"), b""));
    let limits = Limits { metadata: 30_000, ..Limits::default() };
    let again = |name: &str, times: usize| vec![(0..times).fold(files(), |tar, _| tar.file(name, b"")).end()];
    for name in ["d/.wh..wh..opq", ".wh.d"] {
        assert_eq!(listing(&layered_within(&again(name, 3), limits).unwrap()).len(), 102);
        assert!(matches!(layered_within(&again(name, 12), limits), Err(Fault::TooMuchMetadata { .. })));
    }
    assert!(layered_within(&again(".wh.gone", 1000), limits).is_ok());
    assert!(matches!(layered_within(&again(".wh.gone", 2000), limits), Err(Fault::TooMuchMetadata { .. })));
}

#[test]
fn what_replaces_a_directory_takes_what_was_in_it() {
    let lower = Tar::default().file("d/f", b"").directory("e").end();
    let upper = Tar::default().file("d", b"file").file("e/f", b"").end();
    let all = listing(&layered(&[lower, upper]));
    assert_eq!(all.keys().skip(1).collect::<Vec<_>>(), ["/d", "/e", "/e/f"]);
}
