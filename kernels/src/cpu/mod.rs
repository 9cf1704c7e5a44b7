//! The CPU: vector lanes, threads, and what this machine can do.

#[cfg(target_arch = "x86_64")]
pub mod avx2;
pub mod detect;
pub mod lanes;
pub(crate) mod lines;
pub mod measure;
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
