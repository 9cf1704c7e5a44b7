//! Generates the wire types from `proto/`. Needs `protoc` on the path (`cargo xtask setup` installs it).

fn main() {
    let files = [
        "proto/foggara/inference/v1/inference.proto",
        "proto/foggara/admin/v1/admin.proto",
        "proto/foggara/cluster/v1/cluster.proto",
        "proto/foggara/worker/v1/worker.proto",
        "proto/foggara/files/v1/files.proto",
    ];
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    // Reflection shows clients what clients call, so the first run keeps the descriptors of those two packages only.
    let built = tonic_prost_build::configure()
        .file_descriptor_set_path(out.join("client_facing.bin"))
        .compile_protos(&files[..2], &["proto"])
        .and_then(|()| tonic_prost_build::configure().compile_protos(&files, &["proto"]));
    if let Err(reason) = built {
        panic!(
            "could not compile the .proto files; is protoc installed (`cargo xtask setup` does it)? {reason}"
        );
    }
}
