//! Clusters that several tests use. They end with the test process.

use std::ops::Deref;

use foggara_tests::cluster::Cluster;
use foggara_tests::paths;
use foggara_tests::setup::Setup;
use tokio::sync::OnceCell;

/// A cluster that is started when it is first needed. No test may break it.
pub struct Shared {
    cluster: OnceCell<Cluster>,
    setup: fn() -> Setup,
}

/// SmolLM2 from its GGUF file over two ranks, as model `smol`.
pub static SMOL: Shared = Shared::new(|| Setup::new("smol").model("smol", &paths::smol_gguf()).workers(2));

/// A tiny checkpoint without a tokenizer over two ranks, as model `tiny`: 320 tokens, a context of 512.
pub static TINY: Shared =
    Shared::new(|| Setup::new("tiny").model("tiny", &paths::golden("llama")).workers(2));

impl Shared {
    const fn new(setup: fn() -> Setup) -> Self {
        Self { cluster: OnceCell::const_new(), setup }
    }

    /// The cluster.
    pub async fn get(&'static self) -> Used {
        Used(self.cluster.get_or_init(|| async { (self.setup)().start().await }).await)
    }
}

/// A shared cluster in a test's hands: shows its logs when the test fails.
pub struct Used(&'static Cluster);

impl Deref for Used {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        self.0
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.show_logs();
        }
    }
}
