//! Which instruction sets this machine has.

use std::sync::OnceLock;

/// The widest lanes there are. All of them give the same results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Widest {
    /// Plain Rust.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// These, and AVX-512 with BW and VNNI.
    Avx512,
    /// These, and tiles of bytes.
    Amx,
}

/// What was found, once for the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features(Widest);

impl Features {
    /// Whether the AVX2 lanes may be used.
    pub fn simd(self) -> bool {
        self.0 >= Widest::Avx2
    }

    /// The lanes that products may use.
    pub fn lanes(self) -> Widest {
        self.0
    }

    /// For logs.
    pub fn name(self) -> &'static str {
        match self.0 {
            Widest::Portable => "portable",
            Widest::Avx2 => "avx2+fma+f16c",
            Widest::Avx512 => "avx512+vnni",
            Widest::Amx => "avx512+vnni+amx",
        }
    }
}

/// What this machine has. `FOGGARA_CPU=avx512` (or `avx2`, `portable`) in the environment hides what is wider (same results, slower).
pub fn features() -> Features {
    static FOUND: OnceLock<Features> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let most = match std::env::var("FOGGARA_CPU").as_deref() {
            Ok("portable") => Widest::Portable,
            Ok("avx2") => Widest::Avx2,
            Ok("avx512") => Widest::Avx512,
            _ => Widest::Amx,
        };
        Features(found().min(most))
    })
}

#[cfg(target_arch = "x86_64")]
fn found() -> Widest {
    let avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni");
    match (avx2, avx512) {
        (true, true) if super::amx::available() => Widest::Amx,
        (true, true) => Widest::Avx512,
        (true, false) => Widest::Avx2,
        (false, _) => Widest::Portable,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn found() -> Widest {
    Widest::Portable
}
