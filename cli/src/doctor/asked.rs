//! What a host is to do, as far as the checks care.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use foggara_proto::auth::ClusterToken;
use foggara_worker::DeviceChoice;

use crate::tls::TlsArguments;

/// Where gRPC and HTTP of a coordinator listen unless told otherwise.
pub(super) const DEFAULT_GRPC: SocketAddr = local(8081);
pub(super) const DEFAULT_HTTP: SocketAddr = local(8080);

const fn local(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), port)
}

/// Which processes a host is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Roles {
    pub(crate) coordinator: bool,
    pub(crate) worker: bool,
}

/// What was said of the processes that are to run here. Fields are the options of the same names.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) roles: Roles,
    /// Whether a role was named, and not both taken for want of one.
    pub(crate) role_named: bool,
    pub(crate) grpc: Option<SocketAddr>,
    pub(crate) http: Option<SocketAddr>,
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) advertise: Option<String>,
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) models: Vec<PathBuf>,
    /// Coordinators that a worker joins.
    pub(crate) join: Vec<String>,
    /// Coordinators of a cluster besides this one.
    pub(crate) peers: Vec<String>,
    pub(crate) token: ClusterToken,
    pub(crate) tls: TlsArguments,
    /// Hosts under which others call what is to run here.
    pub(crate) called: Vec<String>,
    pub(crate) model: Vec<PathBuf>,
    pub(crate) device: DeviceChoice,
}

/// An address to listen at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) option: &'static str,
    pub(super) address: SocketAddr,
    /// Whether it, or the process that has it by default, was asked for.
    pub(super) asked: bool,
}

impl Asked {
    /// Where processes are to listen.
    pub(super) fn addresses(&self) -> Vec<Address> {
        let mut addresses = Vec::new();
        let mut add = |option, given: Option<SocketAddr>, default: Option<SocketAddr>| {
            let asked = given.is_some() || self.role_named;
            addresses.extend(given.or(default).map(|address| Address { option, address, asked }));
        };
        let coordinator = |address| self.roles.coordinator.then_some(address);
        add("--grpc", self.grpc, coordinator(DEFAULT_GRPC));
        add("--http", self.http, coordinator(DEFAULT_HTTP));
        // A worker takes any free port by default.
        add("--listen", self.listen, None);
        addresses
    }

    /// Whether anything is said of other hosts.
    pub(super) fn beyond_this_host(&self) -> bool {
        let loopback = |peer: &String| {
            let host = peer.rsplit_once(':').map_or(peer.as_str(), |(host, _)| host);
            host == "localhost"
                || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
        };
        let listens = self.addresses().iter().any(|address| !address.address.ip().is_loopback());
        listens || self.join.iter().chain(&self.peers).any(|peer| !loopback(peer))
    }
}

/// Everything left open, for tests.
#[cfg(test)]
pub(super) fn nothing() -> Asked {
    Asked {
        roles: Roles { coordinator: true, worker: true },
        role_named: false,
        grpc: None,
        http: None,
        listen: None,
        advertise: None,
        data_dir: None,
        models: Vec::new(),
        join: Vec::new(),
        peers: Vec::new(),
        token: ClusterToken::default(),
        tls: TlsArguments::default(),
        called: Vec::new(),
        model: Vec::new(),
        device: DeviceChoice::Auto,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_the_roles_or_given() {
        let told = |asked: &Asked| {
            let addresses = asked.addresses().into_iter();
            addresses.map(|a| format!("{} {} {}", a.option, a.address.port(), a.asked)).collect::<Vec<_>>()
        };
        let worker = Roles { coordinator: false, worker: true };
        assert_eq!(told(&nothing()), ["--grpc 8081 false", "--http 8080 false"]);
        let listen = Some(local(9));
        let alone = Asked { roles: worker, role_named: true, listen, ..nothing() };
        assert_eq!(told(&alone), ["--listen 9 true"]);
        let given = Asked { grpc: Some(local(7)), ..nothing() };
        assert_eq!(told(&given), ["--grpc 7 true", "--http 8080 false"]);
    }

    #[test]
    fn other_hosts_are_known_by_their_addresses() {
        for (peer, beyond) in [
            ("127.0.0.1:1", false),
            ("[::1]:1", false),
            ("localhost:1", false),
            ("10.0.0.1:1", true),
            ("a:1", true),
        ] {
            let asked = Asked { join: vec![peer.into()], ..nothing() };
            assert_eq!(asked.beyond_this_host(), beyond, "{peer}");
        }
        let asked = Asked { listen: Some("0.0.0.0:1".parse().expect("valid")), ..nothing() };
        assert!(asked.beyond_this_host());
    }
}
