//! Generated messages, clients and servers, one module for each protobuf package.
#![allow(missing_docs, clippy::all, clippy::pedantic, unused_qualifications)]

// Generated code refers to other packages by their place in the package tree, so the tree is laid out here once.
mod foggara {
    pub mod inference {
        pub mod v1 {
            tonic::include_proto!("foggara.inference.v1");
        }
    }
    pub mod admin {
        pub mod v1 {
            tonic::include_proto!("foggara.admin.v1");
        }
    }
    pub mod cluster {
        pub mod v1 {
            tonic::include_proto!("foggara.cluster.v1");
        }
    }
    pub mod files {
        pub mod v1 {
            tonic::include_proto!("foggara.files.v1");
        }
    }
    pub mod worker {
        pub mod v1 {
            tonic::include_proto!("foggara.worker.v1");
        }
    }
}

/// `foggara.admin.v1`: what operators call.
pub use foggara::admin::v1 as admin;
/// `foggara.cluster.v1`: between coordinators.
pub use foggara::cluster::v1 as cluster;
/// `foggara.files.v1`: models' files between coordinators and workers.
pub use foggara::files::v1 as files;
/// `foggara.inference.v1`: what clients call.
pub use foggara::inference::v1 as inference;
/// `foggara.worker.v1`: between coordinators and workers.
pub use foggara::worker::v1 as worker;

/// Descriptors of the client-facing packages, for gRPC reflection.
pub const CLIENT_FACING_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/client_facing.bin"));
