//! The CPU: vector lanes, threads, and what this machine can do.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
pub mod avx512;
pub mod cores;
pub mod detect;
pub mod lanes;
pub(crate) mod lines;
pub mod measure;
pub mod pairs;
pub mod pool;
pub mod portable;
pub(crate) mod prefetch;
pub(crate) mod shared_slice;
pub(crate) mod transpose;

/// Defines `$name` as the body generic over lanes, instantiated for the widest lanes of this CPU.
macro_rules! simd {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? => $body:path) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                #[allow(clippy::too_many_arguments)]
                fn wide($($arg: $ty),*) $(-> $ret)? {
                    use $body as body;
                    body::<$crate::cpu::avx2::F32x8>($($arg),*)
                }
                if $crate::cpu::detect::features().simd() {
                    // SAFETY: the features `wide` is compiled for have just been found.
                    return unsafe { wide($($arg),*) };
                }
            }
            use $body as body;
            body::<$crate::cpu::portable::F32x8>($($arg),*)
        }
    };
}
pub(crate) use simd;

/// Defines `$name` as the body generic over sixteen floats, instantiated for the widest lanes of this CPU.
macro_rules! simd_wide {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? => $body:path) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            use $body as body;
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
                #[allow(clippy::too_many_arguments)]
                fn widest($($arg: $ty),*) $(-> $ret)? {
                    body::<$crate::cpu::avx512::F32x16>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma,f16c")]
                #[allow(clippy::too_many_arguments)]
                fn wide($($arg: $ty),*) $(-> $ret)? {
                    body::<[$crate::cpu::avx2::F32x8; 2]>($($arg),*)
                }
                match $crate::cpu::detect::features().lanes() {
                    // SAFETY: the features that these are compiled for have just been found.
                    $crate::cpu::detect::Widest::Amx | $crate::cpu::detect::Widest::Avx512 => return unsafe { widest($($arg),*) },
                    // SAFETY: as above.
                    $crate::cpu::detect::Widest::Avx2 => return unsafe { wide($($arg),*) },
                    $crate::cpu::detect::Widest::Portable => {}
                }
            }
            body::<[$crate::cpu::portable::F32x8; 2]>($($arg),*)
        }
    };
}
pub(crate) use simd_wide;

/// Defines `$name` as the body generic over panel lanes and the panels that they hold, instantiated for the widest lanes of this
/// CPU.
macro_rules! simd_panels {
    ($vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) => $body:ident) => {
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
                #[allow(clippy::too_many_arguments)]
                fn widest($($arg: $ty),*) {
                    $body::<$crate::cpu::avx512::F32x16, 2>($($arg),*);
                }
                #[target_feature(enable = "avx2,fma,f16c")]
                #[allow(clippy::too_many_arguments)]
                fn wide($($arg: $ty),*) {
                    $body::<[$crate::cpu::avx2::F32x8; 2], 2>($($arg),*);
                }
                match $crate::cpu::detect::features().lanes() {
                    // SAFETY: the features that these are compiled for have just been found.
                    $crate::cpu::detect::Widest::Amx | $crate::cpu::detect::Widest::Avx512 => return unsafe { widest($($arg),*) },
                    // SAFETY: as above.
                    $crate::cpu::detect::Widest::Avx2 => return unsafe { wide($($arg),*) },
                    $crate::cpu::detect::Widest::Portable => {}
                }
            }
            $body::<$crate::cpu::portable::F32x8, 1>($($arg),*);
        }
    };
}
pub(crate) use simd_panels;

/// As `simd_panels!`, for bodies that are told how pairs of bfloat16 are multiplied, too.
macro_rules! simd_pairs {
    ($vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) => $body:ident) => {
        $vis fn $name($($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512bf16,avx2,fma,f16c")]
                fn in_pairs($($arg: $ty),*) {
                    $body::<$crate::cpu::avx512::F32x16, 2, $crate::cpu::avx512::Native>($($arg),*);
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
                fn widest($($arg: $ty),*) {
                    $body::<$crate::cpu::avx512::F32x16, 2, $crate::cpu::pairs::Widened>($($arg),*);
                }
                #[target_feature(enable = "avx2,fma,f16c")]
                fn wide($($arg: $ty),*) {
                    $body::<[$crate::cpu::avx2::F32x8; 2], 2, $crate::cpu::pairs::Widened>($($arg),*);
                }
                let features = $crate::cpu::detect::features();
                if features.multiplies_bf16() {
                    // SAFETY: the features that it is compiled for have just been found.
                    return unsafe { in_pairs($($arg),*) };
                }
                match features.lanes() {
                    // SAFETY: as above.
                    $crate::cpu::detect::Widest::Amx | $crate::cpu::detect::Widest::Avx512 => return unsafe { widest($($arg),*) },
                    // SAFETY: as above.
                    $crate::cpu::detect::Widest::Avx2 => return unsafe { wide($($arg),*) },
                    $crate::cpu::detect::Widest::Portable => {}
                }
            }
            $body::<$crate::cpu::portable::F32x8, 1, $crate::cpu::pairs::Widened>($($arg),*);
        }
    };
}
pub(crate) use simd_pairs;
