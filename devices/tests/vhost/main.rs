//! Devices whose rings the kernel has, vhost-net and vhost-vsock, between a mock driver and the kernel of the lab.

mod interrupts;
#[path = "../../../net/tests/namespace/mod.rs"]
mod namespace;
#[path = "../vsock/packet.rs"]
mod packet;
#[path = "../rig/mod.rs"]
mod rig;

/// What this machine's kernel may not have, and the lab's has.
mod stock {
    mod net;
    mod vsock;
}
