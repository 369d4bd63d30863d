//! What a look at the host says, for `wirevm doctor`.

/// What a host's settings mean for NAT and for bridges: one line of `wirevm doctor`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub what: String,
    /// False where something that wirevm can do will not work, or not without the command.
    pub good: bool,
    /// How it is.
    pub state: String,
    /// What to do about it, where there is something.
    pub remedy: Option<String>,
}
