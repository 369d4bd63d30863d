//! What is wrong with a `--net`, whatever the host.

use crate::config::table::kind_forms;

/// What is wrong with a `--net`, whatever the host. Where the host refused, its reason is the source and not in the text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// The word before the first `=` or `,` of a `--net` is no kind of wire.
    #[error("unknown kind {kind:?}")]
    UnknownKind {
        /// The word.
        kind: String,
    },
    /// The kind needs a link's name behind its `=`.
    #[error("{kind} does not say which ({kind}=)")]
    NoPlace {
        /// The kind of wire.
        kind: &'static str,
        /// A spec that says it.
        example: &'static str,
    },
    /// The kind has no such key.
    #[error("{kind} has no key {key:?} ({key}=)")]
    UnknownKey {
        /// The kind of wire.
        kind: &'static str,
        /// The key.
        key: String,
        /// The keys that it has.
        known: String,
    },
    /// A piece between commas has no `=`.
    #[error("{item:?} is not key=value")]
    NotAKey {
        /// The piece.
        item: String,
    },
    /// A key is there twice.
    #[error("{key}= is given twice")]
    KeyTwice {
        /// The key.
        key: String,
    },
    /// A key's value makes no sense.
    #[error("{key}={value}: {why}")]
    Value {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// Why not.
        why: &'static str,
        /// How it is written, where `why` does not say so.
        remedy: Option<String>,
    },
    /// The CPUs are not as many as the queue pairs.
    #[error("affinity={affinity}: there is one CPU for each queue pair, and these are {queues}")]
    Affinity {
        /// The CPUs.
        affinity: String,
        /// How many queue pairs there are.
        queues: u16,
    },
}

impl SpecError {
    /// What a person can do about it, where we know.
    pub(crate) fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::UnknownKind { .. } => format!("the kinds are: {}", kind_forms()),
            Self::NoPlace { example, .. } => format!("write --net {example}"),
            Self::UnknownKey { kind, known, .. } => format!("the keys of {kind} are: {known}"),
            Self::NotAKey { .. } => {
                "a --net is KIND[=WHERE][,key=value]...: tap=tap0,host=172.31.0.1/24".to_owned()
            }
            Self::Value { remedy, .. } => return remedy.clone(),
            Self::KeyTwice { key } => format!("drop one {key}="),
            Self::Affinity { affinity, .. } => {
                let cpus = affinity.split(':').count();
                format!(
                    "give as many CPUs as queue pairs: queues={cpus}; queues=auto is as many as --cpus says"
                )
            }
        })
    }
}
