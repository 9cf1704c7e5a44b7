//! Ports for a local cluster.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Context, Result};

/// Coordinator `i` listens on these, plus 10·i.
const STRIDE: u16 = 10;
/// How many coordinators.
pub const COORDINATORS: u16 = 3;

/// Where the first coordinator listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    pub http: u16,
    pub grpc: u16,
}

impl Ports {
    /// Those that `foggara` uses unless told otherwise.
    pub const DEFAULT: Self = Self { http: 8080, grpc: 8081 };

    /// The option by which `foggara` finds the coordinators, any of which will do; none if it looks there anyway.
    pub fn endpoint_option(self) -> Vec<String> {
        if self == Self::DEFAULT {
            return Vec::new();
        }
        let each = (0..COORDINATORS).map(|i| format!("http://127.0.0.1:{}", self.grpc + STRIDE * i));
        vec!["--endpoint".into(), each.collect::<Vec<_>>().join(",")]
    }

    fn all(self) -> impl Iterator<Item = u16> {
        (0..COORDINATORS).flat_map(move |i| [self.http + STRIDE * i, self.grpc + STRIDE * i])
    }
}

/// The default ports, or the first of a few others that are all free.
pub fn free() -> Result<Ports> {
    let candidates = (1..=5_u16).map(|i| Ports { http: i * 10_000 + 8080, grpc: i * 10_000 + 8081 });
    let mut candidates = std::iter::once(Ports::DEFAULT).chain(candidates);
    let is_free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    candidates.find(|ports| ports.all().all(is_free)).context("none of the ports tried is free on 127.0.0.1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coordinators_are_ten_apart() {
        assert_eq!(Ports::DEFAULT.all().collect::<Vec<_>>(), [8080, 8081, 8090, 8091, 8100, 8101]);
        let ports = Ports { http: 1, grpc: 2 };
        let expected = ["--endpoint", "http://127.0.0.1:2,http://127.0.0.1:12,http://127.0.0.1:22"];
        assert_eq!(ports.endpoint_option(), expected);
        assert!(Ports::DEFAULT.endpoint_option().is_empty());
    }
}
