//! What can go wrong on a device.

/// A call that a device, or the library behind it, did not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{device}: {call}{}: {reason}", if .shape.is_empty() { String::new() } else { format!(" ({})", .shape) })]
pub struct DeviceError {
    /// Which device.
    pub device: String,
    /// The call, or the kernel.
    pub call: &'static str,
    /// Sizes it was called with; empty where there are none.
    pub shape: String,
    /// What it answered.
    pub reason: String,
    /// Nothing on this device works any more: the process must be started anew.
    pub lost: bool,
}
