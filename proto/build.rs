//! Generates the messages, clients and servers of `proto/ballast/v1`.

fn main() -> std::io::Result<()> {
    let services =
        ["agent", "controller", "vmm"].map(|name| format!("proto/ballast/v1/{name}.proto"));
    tonic_prost_build::configure().compile_protos(&services, &["proto".to_owned()])
}
