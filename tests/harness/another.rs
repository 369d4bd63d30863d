//! Another wirevm, as far as others see of it: it has the lock.

use std::process::{Child, Stdio};

use crate::netns::Netns;

/// It changes the host's network until it is dropped.
pub struct Another(Child);

impl Another {
    /// It has begun.
    ///
    /// # Panics
    /// There is no shell.
    pub fn on(host: &Netns) -> Self {
        let script = "mkdir -pm 700 /run/wirevm; exec 9>/run/wirevm/lock; flock 9; echo ready; exec cat";
        let mut command = host.command("sh");
        let mut child =
            command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = [0; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        Self(child)
    }
}

impl Drop for Another {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}
