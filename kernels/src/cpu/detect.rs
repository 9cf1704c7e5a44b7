//! Which instruction sets this machine has.

use std::sync::OnceLock;

/// What was found, once for the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// AVX2, FMA and F16C together, and not switched off by `FOGGARA_CPU=portable`.
    wide: bool,
    /// The processor has AVX-512 with VNNI (not used yet; reported).
    pub avx512_vnni: bool,
}

impl Features {
    /// Whether the AVX2 lanes may be used.
    pub fn simd(self) -> bool {
        self.wide
    }

    /// For logs.
    pub fn name(self) -> &'static str {
        if self.wide { "avx2+fma+f16c" } else { "portable" }
    }
}

/// What this machine has. `FOGGARA_CPU=portable` in the environment hides all of it (same results, slower).
pub fn features() -> Features {
    static FOUND: OnceLock<Features> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let portable = std::env::var_os("FOGGARA_CPU").is_some_and(|choice| choice == "portable");
        let (wide, avx512_vnni) = found();
        Features { wide: wide && !portable, avx512_vnni }
    })
}

#[cfg(target_arch = "x86_64")]
fn found() -> (bool, bool) {
    let wide = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    (wide, is_x86_feature_detected!("avx512vnni"))
}

#[cfg(not(target_arch = "x86_64"))]
fn found() -> (bool, bool) {
    (false, false)
}
