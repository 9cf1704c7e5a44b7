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
pub struct Features {
    lanes: Widest,
    bf16: bool,
}

impl Features {
    /// Whether the AVX2 lanes may be used.
    pub fn simd(self) -> bool {
        self.lanes >= Widest::Avx2
    }

    /// The lanes that products may use.
    pub fn lanes(self) -> Widest {
        self.lanes
    }

    /// Whether there is an instruction for products of bfloat16 (AVX512_BF16) beside lanes that are wide enough for it.
    pub fn multiplies_bf16(self) -> bool {
        self.bf16
    }

    /// For logs.
    pub fn name(self) -> &'static str {
        match (self.lanes, self.bf16) {
            (Widest::Portable, _) => "portable",
            (Widest::Avx2, _) => "avx2+fma+f16c",
            (Widest::Avx512, false) => "avx512+vnni",
            (Widest::Avx512, true) => "avx512+vnni+bf16",
            (Widest::Amx, false) => "avx512+vnni+amx",
            (Widest::Amx, true) => "avx512+vnni+bf16+amx",
        }
    }
}

/// What this machine has. `FOGGARA_CPU=avx512` (or `avx2`, `portable`) in the environment hides what is wider, and products of bfloat16 (same results, slower).
pub fn features() -> Features {
    static FOUND: OnceLock<Features> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let most = match std::env::var("FOGGARA_CPU").as_deref() {
            Ok("portable") => Widest::Portable,
            Ok("avx2") => Widest::Avx2,
            Ok("avx512") => Widest::Avx512,
            _ => Widest::Amx,
        };
        let lanes = found().min(most);
        // What is narrower than all there is stands for a machine of the time when there was no such instruction.
        Features { lanes, bf16: most == Widest::Amx && lanes >= Widest::Avx512 && finds_bf16() }
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

#[cfg(target_arch = "x86_64")]
fn finds_bf16() -> bool {
    is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
fn finds_bf16() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn found() -> Widest {
    Widest::Portable
}
