//! Who may use the machine beside a test.

use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

static MACHINE: RwLock<()> = RwLock::const_new(());

/// Other tests may run meanwhile.
pub async fn shared() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().await
}

/// No other test runs meanwhile: for promises about time, and for those that load every core.
pub async fn alone() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().await
}

/// How many times a loop runs: `usual`, or `soak` with `FOGGARA_SOAK=1`.
pub fn rounds(usual: usize, soak: usize) -> usize {
    if std::env::var_os("FOGGARA_SOAK").is_some_and(|value| value != "0") { soak } else { usual }
}
