//! What an image says of the command to run (OCI image-spec, `config.md`, "config").

use serde_json::{Value, json};

/// What an image runs, and how. All empty where it does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `NAME=VALUE` each.
    pub env: Vec<String>,
    /// What is run, with `cmd` as its arguments; or what comes before the user's own command.
    pub entrypoint: Vec<String>,
    /// What is run, or the entry point's arguments, where the user gives none.
    pub cmd: Vec<String>,
    /// Where it is run; empty for the root.
    pub working_dir: String,
    /// As whom: `USER[:GROUP]`, by names or numbers; empty for root.
    pub user: String,
}

impl ImageConfig {
    /// The command: `own` where the user gives one, else `Cmd`; after the entry point.
    pub fn command(&self, own: &[String]) -> Vec<String> {
        let arguments = if own.is_empty() { &self.cmd } else { own };
        [&self.entrypoint[..], arguments].concat()
    }

    /// Of the member `config` of an image's configuration; what is of another type counts as not said.
    pub(super) fn of(config: &Value) -> Self {
        let list = |name| {
            let items = config.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            items.iter().filter_map(|item| Some(item.as_str()?.to_owned())).collect()
        };
        let text = |name| config.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        Self {
            env: list("Env"),
            entrypoint: list("Entrypoint"),
            cmd: list("Cmd"),
            working_dir: text("WorkingDir"),
            user: text("User"),
        }
    }

    /// What [`of`](Self::of) reads.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "Env": self.env,
            "Entrypoint": self.entrypoint,
            "Cmd": self.cmd,
            "WorkingDir": self.working_dir,
            "User": self.user,
        })
    }
}
